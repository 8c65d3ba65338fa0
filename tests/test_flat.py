"Nothing grows while a run goes on; `python tests/flat.py` is the long form, with memory"
import os

import pytest
from flat import grown, measured

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")


@pytest.mark.parametrize("kind, times", [("training", 40), ("stream", 20)])
def test_files_threads_and_temporary_folders_are_as_many_at_the_end(kind, times):
    first, last = measured(kind, times)
    assert not set(grown(first, last)) - {"MiB"}, (first, last)  # so short a run tells nothing of memory


def test_what_has_grown_is_named():
    first = dict(MiB=100.0, files=5, threads=2, folders=1)
    assert grown(first, first | dict(MiB=104.9)) == []
    assert grown(first, first | dict(MiB=105.1)) == ["MiB"]
    assert grown(first, first | dict(files=6, threads=3)) == ["files", "threads"]
