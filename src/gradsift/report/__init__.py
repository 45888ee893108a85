"""What a run leaves behind: ``summary.json``, ``metrics.jsonl`` and one page to look at.

The page needs the plotting library and is imported from `gradsift.report.page`; the summary needs
nothing.
"""

from gradsift.report.summary import Summary as Summary
from gradsift.report.summary import read_summary as read_summary
from gradsift.report.summary import versions as versions
from gradsift.report.summary import write_summary as write_summary
