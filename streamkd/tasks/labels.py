"""The label space: labels in order of arrival, each with the index that is its column in the student's head.

By arrival, never sorted: a new label that sorts first must not move the old ones. A record without label (``None``)
adds none, and its column is -1.
"""

from collections.abc import Iterable, Sequence

from streamkd.records import Label

NONE = -1


class LabelSpace:
    """A growing, ordered set of labels.

    >>> space = LabelSpace()
    >>> space.learn(["cat", "ant", "cat"])
    ['cat', 'ant']
    >>> space.indices(["ant", "cat"])
    [1, 0]
    """

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._index: dict[Label, int] = {}
        self.learn(labels)

    def __contains__(self, label: object) -> bool:
        return label in self._index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> list[Label]:
        """All labels, column by column."""
        return list(self._index)

    def learn(self, labels: Iterable[Label | None]) -> list[Label]:
        """Append the labels that are new, in order; returns them."""
        new = [label for label in dict.fromkeys(labels) if label is not None and label not in self._index]
        for label in new:
            self._index[label] = len(self._index)
        return new

    def indices(self, labels: Sequence[Label | None]) -> list[int]:
        """The columns of known labels, -1 where there is none.

        Raises:
            KeyError: a label that was never learned.
        """
        return [NONE if label is None else self._index[label] for label in labels]

    def state_dict(self) -> dict[str, list[Label]]:
        return {"labels": self.labels}

    def load_state_dict(self, state: dict[str, list[Label]]) -> None:
        self._index = {label: index for index, label in enumerate(state["labels"])}
