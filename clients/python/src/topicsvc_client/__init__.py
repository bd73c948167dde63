"""A client of topicsvc for asyncio: receives the messages of a topic, and sends messages."""

from .rules.effects import End, Gap, Reason, State
from .rules.failures import Failed, SendFailed, TokenRefused
from .rules.messages import Message
from .rules.session import Policy
from .sender import send
from .topic import Topic

__all__ = [
    "End",
    "Failed",
    "Gap",
    "Message",
    "Policy",
    "Reason",
    "SendFailed",
    "State",
    "TokenRefused",
    "Topic",
    "send",
]

__version__ = "0.1.0"
