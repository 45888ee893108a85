"""Whatever is wrong with data or flags: status 2, one line that says so, nothing written."""

import gzip
import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datafiles import (
    IDX_NAMES,
    arrays,
    cifar10,
    cifar100,
    cifar_records,
    idx,
    mnist,
    svmlight,
    table,
)
from gradsift.cli import entry

Prepare = Callable[[Path], object]

CASES: dict[str, tuple[str, str, Prepare]] = {}
"""By name: the command line after ``train``, what the error says, and how the files are made."""


def case(name: str, command: str, message: str, prepare: Prepare | None = None) -> None:
    assert name not in CASES
    CASES[name] = (command, message, prepare or (lambda here: None))


def written(name: str, content: str | bytes) -> Prepare:
    data = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(data)


# Flags.
for flags, message in {
    "--lr nan": "lr nan",
    "--lr -1": "lr -1.0",
    "--lr fast": "--lr",
    "--budget -3s": "60s, 10ep or 2000steps",
    "--budget nans": "60s, 10ep or 2000steps",
    "--budget 0steps": "positive",
    "--batch-size 0": "batch size 0",
    "--batch-size 1e3": "--batch-size",
    "--batch-size 2000": "1442 examples",
    "--device cuda:4096": "not available",
    "--device toaster": "not available",
    "--seed -1": "seed -1",
    "--seed 9223372036854775808": "seed",
    "--pool-ratio nan": "nan",
    "--recipe none": "'none'",
    "--model resnet50": "wrn-D-K",
    "--optimizer sdg": "sgd, adam, adamw",
    "--spend time": "noise, batch, lr",
    "--spend lr --recipe pool": "recipe 'auto'",
    "--cap 95": "a quantile between 0 and 1",
    "--cap nan": "a quantile between 0 and 1",
    "--cap 0.9 --recipe pool": "keeps no table of scores",
    "--cap 0.9 --engine inline": "keeps no table of scores",
    "--clock sun": "wall or virtual",
    "--missing zero": "error, drop or mean",
    "--task ranking": "classification or regression",
    "--unit syllables": "characters or words",
    "--context 0": "at least 1 token",
    "--context many": "--context",
    "--label 3": "--label means nothing for the data 'digits'",
    "--drop 3": "--drop means nothing for the data 'digits'",
    "--missing drop": "--missing means nothing",
    "--task regression": "--task means nothing",
    "--unit words": "--unit means nothing",
    "--context 5": "--context means nothing",
}.items():
    case(f"flags {flags}", flags, message)

# Parallel SGD.
for flags, message in {
    "--recipe gasgd --budget 10s": "simulated workers have no seconds",
    "--recipe gasgd --budget 9steps --delay constant:9": "the run has 9",
    "--recipe gasgd --delay constant:inf": "never arrives",
    "--recipe gasgd --delay trace:none.txt": "cannot be read",
    "--recipe gasgd --delay soon": "'soon' is unknown",
    "--recipe gasgd --rho 1": "rho 1",
    "--recipe gasgd --budget 9ep --batch-size 400": "the verification set is empty",
    "--recipe gasgd --budget 9ep --batch-size 60 --workers 21": "has 20 batches",
    "--recipe ssgd --budget 9ep --workers 40 --batch-size 64": "an epoch has 22 batches",
    "--recipe ssgd --budget 3steps": "takes 4 batches",
    "--recipe ssgd --delay constant:9": "'ssgd' has none",
    "--recipe ssgd --compensation gap": "no gradient is late",
    "--recipe gasgd --compensation replay": "replays already",
    "--recipe asgd --compensation hope": "none, age, dc, dc-adaptive, gap, replay",
    "--recipe asgd --workers 0": "0 workers",
    "--recipe asgd --backend cloud": "choose simulate",
    "--recipe ssp --bound -1": "bound -1",
    "--recipe gsgd --workers 4": "'gsgd' has one",
    "--recipe asgd --bound 2": "--bound received",
    "--recipe asgd --rho 4 --compensation gap": "--rho received",
    "--recipe gssgd --workers 1": "use 2 or more",
    "--recipe asgd --pool-ratio 3": "--pool-ratio received",
    "--recipe asgd --spend lr": "--spend received",
    "--recipe gasgd --resume": "holds no run to resume",
    "--recipe gasgd --delay measured": "use --backend ray",
    "--recipe gasgd --budget 40steps --delay arrivals:none.csv": "'none.csv' cannot be read",
    "--recipe gasgd --delay arrivals:": "'arrivals:' is unknown",
    "--recipe gasgd --ray-address 1.2.3.4:5": "the backend is simulate",
    "--recipe gssgd --backend ray": "is synchronous",
    "--recipe gasgd --backend ray --budget 10s": "planned in batches",
    "--recipe gasgd --backend ray --rho 1": "rho 1",
    "--recipe gasgd --backend ray --budget 9ep --batch-size 400": "the verification set is empty",
    "--recipe asgd --backend ray --budget 9steps --model wrn-10-1 --norm batch": "--norm group",
    "--recipe gasgd --backend ray --budget 9ep --workers 21 --batch-size 60": "has 20 batches",
    "--recipe gasgd --backend ray --budget 9steps --delay constant:9": "the run has 9",
    "--recipe asgd --sampler pool": "choose one of uniform, table",
    "--recipe gasgd --sampler table": "share shuffled batches: use one of asgd, ssp",
    "--recipe asgd --sampler table --compensation age+replay": "are not replayed",
    "--recipe asgd --sampler table --backend ray": "workers on Ray share shuffled batches",
    "--recipe ssgd --compensation gap+replay": "no gradient is late",
    "--recipe asgd --average 1.5": "average 1.5 received, expected a share",
    "--sampler table": "--sampler received",
    "--recipe asgd --cap 0.9": "--cap received",
    "--recipe auto --workers 4": "'auto' is no parallel SGD",
    "--delay constant:9": "--delay received",
}.items():
    case(f"parallel {flags}", flags, message)

# Names and places.
for spec, message in {
    "mnits": "module:callable",
    "digits:there": "digits are bundled",
    "iris.txt": "FILE.csv",
    "no_such_module:f": "cannot import",
    "math:pi": "cannot call",
    "absent.csv": "absent.csv does not exist here and GRADSIFT_DATA is not set",
    "absent.npz": "absent.npz does not exist",
    "/absent.csv": "/absent.csv does not exist: check",
    "table:": "not a path",
    "text:": "not a path",
    "libsvm:absent": "absent does not exist",
    "text:absent.txt": "absent.txt does not exist",
    "text:a,b,c": "3 texts",
    "mnist": "mnist does not exist",
    "fashion-mnist:absent": "absent does not exist",
    "cifar10": "cifar10 does not exist",
    "cifar100:absent": "absent does not exist",
    "math:data": "has no 'data'",
}.items():
    case(f"name {spec}", f"--data {spec}", message)
for spec in ("table:here", "libsvm:here", "text:here", "npz:here"):
    case(
        f"{spec} is a folder", f"--data {spec}", "is a folder", lambda here: (here / "here").mkdir()
    )
for spec in ("mnist:here", "cifar10:here", "cifar100:here"):
    case(f"{spec} is a file", f"--data {spec}", "is a file", written("here", "x"))
for spec in ("table:here", "libsvm:here", "text:here", "npz:here"):
    case(f"{spec} is empty", f"--data {spec}", "here", written("here", ""))
    case(f"{spec} is garbage", f"--data {spec}", "here", written("here", bytes(range(256)) * 4))


# IDX.
def broken_mnist(name: str, content: bytes | None, packed: bool = False) -> Prepare:
    def prepare(here: Path) -> None:
        mnist(here / "m", packed=packed)
        path = here / "m" / (f"{name}.gz" if packed else name)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return prepare


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = IDX_NAMES
PIXELS = np.zeros((40, 8, 8), dtype=np.uint8)
NUMBERS = np.arange(40) % 10
for name, file, content, message in [
    ("images are labels", IMAGES, idx(NUMBERS), "expected 00 00 08 03"),
    ("labels are images", LABELS, idx(PIXELS), "expected 00 00 08 01"),
    ("empty images", IMAGES, b"", "is empty"),
    ("three bytes", IMAGES, b"\0\0\x08", "begins with 00 00 08"),
    ("ends in its header", IMAGES, idx(PIXELS)[:9], "ends within its header"),
    ("header alone", IMAGES, idx(PIXELS)[:16], "0 bytes of data, expected 2560"),
    ("truncated images", IMAGES, idx(PIXELS)[:-1], "2559 bytes of data, expected 2560"),
    ("long images", IMAGES, idx(PIXELS) + b"x", "more bytes of data"),
    ("truncated labels", LABELS, idx(NUMBERS)[:-5], "35 bytes of data, expected 40"),
    ("floats", IMAGES, idx(PIXELS, kind=0x0D), "begins with 00 00 0d 03"),
    ("no images at all", IMAGES, idx(PIXELS[:0]), "holds nothing"),
    ("images without pixels", IMAGES, idx(PIXELS[:, :0]), "holds nothing"),
    ("images that claim the world", IMAGES, b"\0\0\x08\3" + b"\xff" * 12, "bytes of data"),
    ("fewer labels", LABELS, idx(NUMBERS[:39]), "39 labels for the 40 images"),
    ("label out of range", LABELS, idx(NUMBERS + (NUMBERS == 9)), "label 10 at example 9"),
    ("other test size", TEST_IMAGES, idx(PIXELS[:20, :7]), "7 x 8 in the test set"),
    ("test label out of range", TEST_LABELS, idx(np.full(20, 255)), "label 255 at example 0"),
    ("no images file", IMAGES, None, f"no file {IMAGES}"),
    ("no test labels file", TEST_LABELS, None, f"no file {TEST_LABELS}"),
    ("gzip by mistake", IMAGES, gzip.compress(idx(PIXELS)), "begins with 1f 8b"),
]:
    case(f"mnist: {name}", "--data mnist:m", message, broken_mnist(file, content))
PACKED = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (40, 8, 8))))
for name, content, message in [
    ("not packed", idx(PIXELS), "Not a gzipped file"),
    ("truncated", PACKED[:-600], "broken"),
    ("corrupted", PACKED[:900] + b"\xff" * 40 + PACKED[940:], "broken"),
    ("empty", b"", "is empty"),
    ("bomb", gzip.compress(idx(PIXELS) + bytes(10_000_000)), "more bytes of data"),
    ("claims the world", gzip.compress(b"\0\0\x08\3" + b"\xff" * 12), "0 bytes of data"),
]:
    case(f"packed mnist: {name}", "--data mnist:m", message, broken_mnist(IMAGES, content, True))


# CIFAR.
def broken_cifar(make: Callable[[Path], None], name: str, content: bytes | None) -> Prepare:
    def prepare(here: Path) -> None:
        make(here / "c")
        (here / "c" / name).unlink(missing_ok=True)
        if content is not None:
            (here / "c" / name).write_bytes(content)

    return prepare


def pickled(here: Path) -> None:
    (here / "c").mkdir()
    (here / "c" / "data_batch_1").write_bytes(pickle.dumps({b"data": [0]}))


RECORDS = cifar_records([[1], [2]])
for name, file, content, message in [
    ("truncated", "data_batch_2.bin", RECORDS[:-1], "6145 bytes, expected a multiple of 3073"),
    ("empty", "test_batch.bin", b"", "0 bytes"),
    ("label out of range", "data_batch_1.bin", cifar_records([[3], [10]]), "label 10 at example 1"),
    ("the other set", "test_batch.bin", cifar_records([[1, 2]]), "3074 bytes"),
    ("no test part", "test_batch.bin", None, "lacks"),
]:
    case(f"cifar10: {name}", "--data cifar10:c", message, broken_cifar(cifar10, file, content))
case("cifar10: pickled", "--data cifar10:c", "runs code", pickled)
case("cifar10: an empty folder", "--data cifar10:c", "lacks", lambda here: (here / "c").mkdir())
for name, content, message in [
    ("coarse label out of range", cifar_records([[20, 1]]), "label 20"),
    ("fine label out of range", cifar_records([[1, 100]]), "label 100"),
    ("the other set", RECORDS, "6146 bytes"),
]:
    prepare = broken_cifar(cifar100, "train.bin", content)
    case(f"cifar100: {name}", "--data cifar100:c", message, prepare)


# NumPy archives.
def saved(**changes: np.ndarray | None) -> Prepare:
    def prepare(here: Path) -> None:
        kept = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
        np.savez(here / "a.npz", **kept)  # pyright: ignore[reportArgumentType]

    return prepare


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return packed.getvalue()


def npy(array: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=True)
    return packed.getvalue()


GOOD = arrays()
NAN = np.where(np.arange(120).reshape(40, 3) == 7, np.nan, 0.0)
SOLID = np.zeros((60, 7, 7, 7), dtype=np.uint8)
OBJECTS = np.array([{"a": 1}] * 40, dtype=object)
SHORT = npy(np.zeros((9, 2)))[:-9]
HUGE = npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(9999999999, 99999999)")
for name, prepare, message in [
    ("keys missing", saved(y_test=None), "no y_test"),
    ("other keys", lambda here: np.savez(here / "a.npz", images=np.zeros(3)), "holds images"),
    ("y alone missing", lambda here: np.savez(here / "a.npz", x=np.zeros((9, 2))), "but no y"),
    ("no keys", lambda here: np.savez(here / "a.npz"), "holds nothing"),
    ("NaN", saved(x_train=NAN), "NaN or infinite value at [2, 1]"),
    ("infinite in float32", saved(x_train=NAN * 0 + 1e300), "infinite"),
    ("NaN target", saved(y_train=np.full(40, np.nan), y_test=np.zeros(20)), "y of a.npz has a NaN"),
    ("fewer targets", saved(y_train=np.zeros(39, dtype=int)), "has shape [39], expected [40]"),
    ("targets in a matrix", saved(y_train=np.zeros((40, 2))), "expected [40]"),
    ("one number each", saved(x_train=np.zeros(40)), "examples and their features"),
    ("no examples", saved(x_train=np.zeros((0, 3)), y_train=np.zeros(0)), "has shape [0, 3]"),
    ("shapes differ", saved(x_test=np.zeros((20, 4))), "x_train and x_test of a.npz differ"),
    ("kinds differ", saved(y_test=np.zeros(20)), "y_train and y_test of a.npz differ"),
    ("a new class", saved(y_test=np.full(20, 7)), "class 7"),
    ("one class", saved(y_train=np.ones(40, int), y_test=np.ones(20, int)), "only 1"),
    ("objects", saved(y_train=OBJECTS), "without Python objects"),
    ("complex numbers", saved(x_train=np.zeros((40, 3), complex)), "holds complex128"),
    ("bytes of no image", saved(x_train=SOLID[:40], x_test=SOLID[40:]), "1, 3 or 4 channels"),
    ("a plain npy", written("a.npz", npy(np.zeros((4, 3)))), "no npz archive"),
    ("truncated", written("a.npz", zipped(x=npy(np.zeros((9, 2))))[:-30]), "no npz archive"),
    ("broken member", written("a.npz", zipped(x=b"garbage", y=b"x")), "cannot be opened"),
    ("cut member", written("a.npz", zipped(x=SHORT, y=SHORT)), "cannot be opened"),
    ("claims the world", written("a.npz", zipped(x=HUGE, y=HUGE)), "cannot be opened"),
    (
        "four examples",
        lambda here: np.savez(here / "a.npz", x=NAN[4:8], y=np.arange(4) % 2),
        "5 examples",
    ),
    ("three halves", saved(y_train=None, x=NAN[3:], y=np.zeros(36)), "has shape [36]"),
]:
    case(f"npz: {name}", "--data a.npz", message, prepare)
WORDS_AS_TARGETS = saved(y_train=np.array(["a"] * 40), y_test=np.array(["a"] * 20))
HALVES = saved(y_train=np.full(40, 0.5), y_test=np.full(20, 0.5))
for task, message, prepare in [
    ("regression", "expected numbers", WORDS_AS_TARGETS),
    ("classification", "whole numbers or words", HALVES),
]:
    case(f"npz: not for {task}", f"--data a.npz --task {task}", message, prepare)

# Tables.
WORDS = table(40, "x,y,kind")
for name, content, flags, message in [
    ("ragged", table(5) + "1,2\n", "", "line 6 of t.csv has 2 columns"),
    ("a word among numbers", table(5) + "1,two,a\n", "", "column 2 of t.csv has 'two' in line 6"),
    ("a decimal comma", table(40, separator=";").replace(".", ","), "", "has '0,5' in line 2"),
    ("hexadecimal", table(5) + "0x1,2,a\n", "", "'0x1'"),
    ("underscores", table(5) + "1_0,2,a\n", "", "'1_0'"),
    ("infinity", table(5) + "inf,2,a\n", "", "'inf'"),
    ("overflow", table(5) + "1e999,2,a\n", "", "'1e999'"),
    ("too large to standardise", table(40) + "1e308,2,a\n-1e308,2,b\n" * 10, "", "too large"),
    ("header twice", table(40, "x,x,y"), "", "names 'x' twice"),
    ("half a header", table(40, "x,2,y"), "", "column 1 of t.csv has 'x' in line 1"),
    ("header alone", "x,y,z\n", "", "column 1 of t.csv has 'x'"),
    ("unknown name", WORDS, "--label colour", "no column 'colour': name one of x, y, kind"),
    ("column 0", WORDS, "--label 0", "no column '0'"),
    ("column 4", WORDS, "--label 4", "from 1 to 3"),
    ("column -4", WORDS, "--label=-4", "no column '-4'"),
    ("drop what is not there", WORDS, "--drop size", "no column 'size'"),
    ("drop the label", WORDS, "--drop kind", "is the label and is dropped too"),
    ("drop all", WORDS, "--drop x --drop 2", "no column left"),
    ("a word as feature", WORDS, "--label x", "leave the column out with --drop 3"),
    ("one class", table(40, label="a"), "", "only a"),
    ("every label different", "\n".join(f"{k},w{k}" for k in range(30)), "", "of each class"),
    ("one row", "1,2,a\n", "", "only a"),
    ("one column", "1\n2\n3\n", "", "no column left"),
    ("missing", table(40) + "?,2,a\n", "", "no value in line 41 ('?'; 1 such in all)"),
    ("missing everywhere", "?,a\n,b\nNA,a\n" * 5, "--missing drop", "every row"),
    ("column without values", "?,1,a\n?,2,b\n" * 20, "--missing mean", "column 1"),
    ("missing label", table(40) + "1,2,?\n", "--missing mean", "choose --missing drop"),
    ("not UTF-8", b"1,2,\xe9\n", "", "byte 0xe9 at position 4"),
    ("white space", " \n \n", "", "is empty"),
    ("a quote that never ends", table(40) + '1,2,"a\n', "", "check its quotes"),
    ("a quote in the middle", table(5) + '1,"2"3,a\n', "", "check its quotes"),
    ("words as numbers", WORDS, "--task regression", "expected numbers for a regression"),
    ("halves as classes", "1,0.5\n2,1.5\n" * 9, "--task classification", "whole numbers or words"),
    ("not for tables", WORDS, "--unit words", "--unit means nothing"),
    ("too large a batch", WORDS, "--batch-size 64", "32 examples"),
    ("no image", WORDS, "--model cnn --batch-size 8", "expected images"),
    ("a web page", "<html><body>404, not found</body></html>\n", "", "t.csv"),
]:
    case(f"table: {name}", f"--data t.csv {flags}", message, written("t.csv", content))

REGRESSION = "--data t.csv --label x --drop kind --task regression --batch-size 8 --recipe"
for recipe in ("kakurenbo", "p-sgd", "c-sgd"):
    message = f"recipe {recipe!r} received a regression, expected classes"
    case(f"{recipe}: no classes", f"{REGRESSION} {recipe}", message, written("t.csv", WORDS))
for data, prepare in {
    "libsvm:s": written("s", svmlight()),
    "text:a.txt --model lstm": written("a.txt", "to be " * 100),
}.items():
    flags = f"--data {data} --batch-size 8 --recipe static-importance"
    case(f"no norm of {data}", flags, "expected dense numbers", prepare)

# LIBSVM.
for name, content, message in [
    ("column 0", svmlight() + "+1 0:1\n", "line 41 of s is '+1 0:1'"),
    ("descending", svmlight() + "+1 3:1 2:1\n", "ascending"),
    ("twice", svmlight() + "+1 3:1 3:1\n", "ascending"),
    ("no colon", svmlight() + "+1 3\n", "line 41"),
    ("no label", svmlight() + "3:1\n", "line 41"),
    ("word label", svmlight() + "yes 3:1\n", "'yes 3:1'"),
    ("NaN", svmlight() + "+1 3:nan\n", "finite"),
    ("infinite label", svmlight() + "inf 3:1\n", "finite"),
    ("beyond float32", svmlight() + "+1 3:1e99\n", "finite"),
    ("negative column", svmlight() + "+1 -3:1\n", "line 41"),
    ("huge column", svmlight() + f"+1 {2**70}:1\n", "line 41"),
    ("many columns", svmlight() + "+1 16777217:1\n", "at most 16777216"),
    ("underscores", svmlight() + "+1 1_0:1\n", "line 41"),
    ("ranking", svmlight() + "+1 qid:3 3:1\n", "line 41"),
    ("several labels", svmlight() + "1,2 3:1\n", "line 41"),
    ("labels alone", "+1\n-1\n", "no values"),
    ("comments alone", "# a\n# b\n", "is empty"),
    ("one class", "+1 1:1\n" * 20, "only 1.0"),
    ("a table", table(), "line 1 of s is '0,0,a'"),
]:
    case(f"libsvm: {name}", "--data libsvm:s", message, written("s", content))


def with_test_part(content: str) -> Prepare:
    return lambda here: ((here / "s").write_text(svmlight()), (here / "s.t").write_text(content))


for name, content, message in [
    ("broken", "+1 x:1\n", "line 1 of s.t"),
    ("empty", "", "s.t is empty"),
    ("a new class", "+3 1:1\n", "s.t has class 3"),
]:
    case(f"libsvm, test part: {name}", "--data libsvm:s", message, with_test_part(content))
for model, message in {
    "cnn": "expected images",
    "lstm": "5000 columns, expected at most 4096",
}.items():
    flags = f"--data libsvm:s --model {model} --batch-size 8"
    case(f"libsvm: {model}", flags, message, written("s", svmlight() + "1 5000:1\n"))

# Texts.
for name, content, flags, message in [
    ("too short", "to be or not", "", "training part of a.txt has 10 characters"),
    ("short test part", "to be or not to be " * 5, "", "test part of a.txt has 10 characters"),
    ("few words", "to be or not", "--unit words", "3 words, expected more than the context of 20"),
    ("context too long", "to be " * 100, "--context 700", "540 characters"),
    ("blank", " \n\n ", "", "is empty"),
    ("not UTF-8", b"to be \xff", "", "byte 0xff at position 6"),
    ("UTF-16", "to be or not to be".encode("utf-16"), "", "not a text"),
    ("mlp", "to be " * 100, "--model mlp", "choose lstm"),
    ("linear", "to be " * 100, "--model linear", "choose lstm"),
    ("cnn", "to be " * 100, "--model cnn", "choose lstm"),
    ("normalised", "to be " * 100, "--model lstm --norm group", "no normalisation"),
]:
    flags = flags if "--model" in flags else f"--model lstm {flags}"
    case(f"text: {name}", f"--data text:a.txt {flags}", message, written("a.txt", content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(here: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, after nothing was written."""
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    status = entry.main(["train", *command, "--out", "o"])
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, ""), printed.err
    assert printed.err.startswith("gradsift: error: ")
    assert printed.err.count("\n") == 1
    assert printed.err[:-1].isprintable()
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    return printed.err


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_writes_nothing(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, message, prepare = CASES[name]
    prepare(here)
    assert message in refused(here, command.split(), capsys)


def test_there_are_at_least_a_hundred_cases() -> None:
    assert len(CASES) >= 100


def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sees who may not read a file; the tests may run as one who may read all."""

    def refuse(path: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize(
    ("spec", "prepare"),
    [
        ("t.csv", written("t.csv", table())),
        ("a.npz", saved()),
        ("libsvm:s", written("s", svmlight())),
        ("text:a.txt", written("a.txt", "to be " * 100)),
        ("mnist:m", lambda here: mnist(here / "m")),
        ("mnist:m", lambda here: mnist(here / "m", packed=True)),
        ("cifar10:c", lambda here: cifar10(here / "c")),
    ],
)
def test_a_file_that_may_not_be_read(
    spec: str,
    prepare: Prepare,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(here)
    locked(monkeypatch)
    assert "(Permission denied)" in refused(here, ["--data", spec], capsys)


def test_the_folder_for_data_is_named_when_it_lacks_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADSIFT_DATA", str(here / "data"))
    line = refused(here, ["--data", "absent.csv"], capsys)
    assert f"does not exist here nor in GRADSIFT_DATA ({here / 'data'})" in line


def test_header_of_the_truncated_files_is_as_the_format_says() -> None:
    """The builder of the bad files is itself right about the good ones."""
    assert struct.unpack(">HBB3I", idx(PIXELS)[:16]) == (0, 8, 3, 40, 8, 8)
