import io

import pytest
from tqdm import tqdm

from raykit.engine.screen import Screen, shown


def _written(*texts):
    screen = Screen()
    return [line for text in texts for line in screen.write(text)] + screen.close()


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (["alpha\r\nbeta\r", "\n"], ["alpha", "beta"]),
        (["10% done", "\r", "50% done", "\r", "\n"], ["50% done"]),
        (["abcdef\rxy\n"], ["xycdef"]),  # as a terminal: what is not written over stays
        (["one\ntwo\n\nthree"], ["one", "two", "", "three"]),
        (["a", "b", "\n", "c"], ["ab", "c"]),
        (["abc\b\bX\n"], ["aXc"]),
        (["loading...\r\x1b[Kdone\n"], ["done"]),
        (["wide text\x1b[2K\rx\n"], ["x"]),
        (["\x1b[31mred\x1b[0m\r\x1b[32mgreen\x1b[0m\n"], ["\x1b[32mgreen\x1b[0m"]),
        (["bar\n", "below\x1b[A\rBAR\n\rBELOW\n"], ["bar", "BAR", "BELOW"]),
        (["a\u2028b\x0cc\n"], ["a\u2028b\x0cc"]),
        ([""], []),
    ],
)
def test_lines_are_those_of_a_terminal(texts, lines):
    assert _written(*texts) == lines


def test_the_line_that_is_being_written_is_seen_and_is_no_line_yet():
    screen = Screen()
    assert screen.write("epoch:  10%\repoch:  20%") == []
    assert screen.open_lines() == ("epoch:  20%",)
    assert screen.write("\n") == ["epoch:  20%"]
    assert screen.open_lines() == ()


def test_bars_below_each_other_are_two_lines_and_no_pyramid():
    screen, file = Screen(), io.StringIO()
    lines, seen = [], set()

    def take():
        lines.extend(screen.write(file.getvalue()))
        lines.extend(screen.settle())
        file.seek(0)
        file.truncate()
        seen.add(len(screen.open_lines()))

    outer = tqdm(range(3), desc="outer", file=file, position=0, mininterval=0, ncols=40)
    for _ in outer:
        for _ in tqdm(range(4), desc="inner", file=file, position=1, leave=False, mininterval=0, ncols=40):
            take()
    take()
    file.write("\nfinished\n")
    take()
    lines += screen.close()
    assert max(seen) == 2
    assert lines[-1] == "finished"
    assert sum(line.startswith("outer") for line in lines) <= 2
    assert sum(line.startswith("inner") for line in lines) <= 1


def test_a_line_of_a_program_s_bar_is_shown_as_it_ended():
    assert shown("10%\r100%") == "100%"
    assert shown("plain") == "plain"


def test_a_line_that_grows_by_single_characters_costs_no_more_than_its_length():
    screen = Screen()
    for _ in range(200_000):
        screen.write(".")
    assert screen.write("\n") == ["." * 200_000]
