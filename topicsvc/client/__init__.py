"""A client of topics for Twisted; docs/clients.md shows how to use it."""

from topicsvc.client.rules.effects import End, Gap, Reason, State
from topicsvc.client.rules.failures import Failed, TokenRefused
from topicsvc.client.rules.messages import Message
from topicsvc.client.rules.session import Policy
from topicsvc.client.service import TopicClient

__all__ = [
    "End",
    "Failed",
    "Gap",
    "Message",
    "Policy",
    "Reason",
    "State",
    "TokenRefused",
    "TopicClient",
]
