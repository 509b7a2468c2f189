"""Errors of the lab."""


class LabError(Exception):
    """Something of the simulated site failed; the text says what, which object, what to do."""


class CommandError(LabError):
    """A program that the lab ran ended with an error; the text holds its own last words."""


class ControlError(LabError):
    """The site's control interface refused a request or did not answer."""
