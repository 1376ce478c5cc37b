"""What is not a fault of this program."""


class UserError(Exception):
    """Something that whoever started a job can put right; the message says how, and a job ends with it alone."""
