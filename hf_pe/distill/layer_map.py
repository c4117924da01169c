"""Which layer of the student learns from which of the teacher."""


def uniform(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student, teacher) of hidden-state indices, spread evenly; first with first, last with last.

    Args:
        student: number of the student's hidden states, the embedding output included.
        teacher: likewise; not fewer than 1.
    """
    if student == 1:
        return [(0, teacher - 1)]
    return [(i, round(i * (teacher - 1) / (student - 1))) for i in range(student)]
