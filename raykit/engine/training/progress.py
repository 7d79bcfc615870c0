"""How far a training loop is, in calls that change its state, so that a redone step repeats none of them."""

from __future__ import annotations

CALLS_A_BATCH = 2**20


class Progress:
    """Which of the loop's calls count: those that no commit has kept yet.

    A loop's state changes only by calls that raykit sees: of an optimizer, a scheduler, a scaler, an average of the weights.
    The position of such a call is the number of batches that were finished before it, and its ordinal since then. State has
    a position too, that of the last call that it contains. Where a loop runs again (a step is redone, a rank joins and runs
    the user's code from its beginning), calls up to the position of its state are skipped, and none is made twice or missed.
    """

    def __init__(self) -> None:
        """Start at the first batch."""
        self.num_batches = self.num_calls = 0  # of the state
        self._batch = self._call = self._first_call = 0  # of the program

    @property
    def number(self) -> int:
        """The state's position as one integer that grows with it."""
        return self.num_batches * CALLS_A_BATCH + self.num_calls

    def after(self, num_batches: int) -> int:
        """Return the number of the position at which so many more batches are finished."""
        return (self.num_batches + num_batches) * CALLS_A_BATCH

    @property
    def place(self) -> tuple[int, int]:
        """The program's position: batches, and calls since."""
        return self._batch, self._call

    def adopt(self, num_batches: int, num_calls: int) -> None:
        """Take the position of a state that was adopted. The program stays where it is."""
        self.num_batches, self.num_calls = num_batches, num_calls

    def begin_unit(self) -> None:
        """Note that the program is about to run the batch that follows the state's last."""
        if self._batch != self.num_batches:
            self._batch, self._call = self.num_batches, 0
        self._first_call = self._call

    def begin_again(self) -> None:
        """Note that the program is back where the unit began."""
        self._call = self._first_call

    def next_is_done(self) -> bool:
        """Count a call of the program that is about to be made, and return whether the state contains it already."""
        is_done = (self._batch, self._call) < (self.num_batches, self.num_calls)
        if is_done:
            self._call += 1
        return is_done

    def call_is_made(self) -> None:
        """Note that the call for which :meth:`next_is_done` was false is in the state."""
        self._call += 1
        self.num_calls = self._call

    def finish(self, num_batches: int) -> None:
        """Note that so many more batches are finished."""
        self.num_batches += num_batches
        self.num_calls = 0
        self._batch, self._call = self.num_batches, 0

    def pass_by(self, num_batches: int) -> None:
        """Note that the program is behind the loop that ends with this batch, which a joining rank has not run."""
        if self._batch != num_batches:
            self._batch, self._call = num_batches, 0
