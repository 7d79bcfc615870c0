import gc

import pytest

from raykit.engine.imports import uncollected


@pytest.fixture(autouse=True)
def as_before():
    yield
    gc.unfreeze()
    gc.enable()


def test_no_garbage_is_looked_for_while_much_is_imported_nor_later_in_what_was():
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_who_looks_for_no_garbage_goes_on_so_also_when_the_import_fails():
    gc.disable()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert not gc.isenabled()
