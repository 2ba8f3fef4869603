"""Why training stops early. What belongs here: error types of the training loop. Not here: their detection."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says what was expected, what was found and what to do."""


class DivergedError(TrainingError):
    """A loss, gradient or weight is not finite."""


class OutputBusyError(TrainingError):
    """Another process is training into the same folder."""
