"""The exception tree. Every error a user can cause is a `UserError`: one line, naming the field and the fix.

UserError            exit code 2, message printed without a traceback
├── ConfigError      a setting, file or argument is wrong
├── WireError        bytes that are not one of our messages (wrong schema version, unknown field, too large)
├── QueueError       Redis unreachable, or refused what we asked
└── DeliveryError    the generator does not run the delta_S that the trainer pushed
"""


class UserError(Exception):
    """Something the user (or a peer) can put right. `str(error)` is one line that says what and how to fix it."""


class ConfigError(UserError):
    """A setting, file or argument is wrong."""


class WireError(UserError):
    """Bytes that are not a message of ours."""


class QueueError(UserError):
    """Redis is unreachable or refused a command."""


class DeliveryError(UserError):
    """A generator's log-probs, version or checksum disagree with the trainer's after a push."""
