"""What can go wrong between us and NATS.

AgentError
|-- NatsUnavailable         try again later: no connection, no leader, no answer in time
|   |-- NoResponder         nobody listens on the subject of a request
|-- PublishUnacknowledged   the outcome is unknown: only the stream knows whether it has the message
|-- StreamFull              the stream is at its limit; waiting (for a trim) helps, repeating at once does not
|-- ConsumerLost            open the consumer again from the last sequence seen
|-- KeyExists, WrongRevision    a compare-and-set in the KV bucket lost
|-- ObjectMissing, ObjectExists, ObjectDamaged
|-- RequestFailed           the other side answered with an error
`-- StreamError
    |-- StreamMisconfigured     a person has to change the stream or the permissions
    |-- PermissionDenied        the NATS user may not use a subject
    |-- MessageTooLarge         above the server's max_payload
    `-- ApiRefused              JetStream refused a request of its API
"""

from __future__ import annotations

from replicated_sqlite_agent.errors import AgentError, StreamError


class NatsUnavailable(AgentError):
    """NATS cannot be reached or did not answer in time; trying again later is right."""


class NoResponder(NatsUnavailable):
    """Nobody listens on the subject of a request."""


class PublishUnacknowledged(AgentError):
    """A message was sent and no acknowledgement came; the stream may or may not have it."""


class StreamFull(AgentError):
    """The stream (or the account) is at its limit and refused a message, so nothing of it was stored."""


class ConsumerLost(AgentError):
    """The consumer no longer delivers; open it again from the sequence after the last one processed."""


class KeyExists(AgentError):
    """`kv_create` found a living value under the key."""


class WrongRevision(AgentError):
    """`kv_update` or `kv_delete` found another revision than the expected one."""


class ObjectMissing(AgentError):
    """The object store holds no object of that name."""


class ObjectExists(AgentError):
    """An object was to be created and there is one of that name."""


class ObjectDamaged(AgentError):
    """An object's parts do not add up to its recorded size and digest."""


class RequestFailed(AgentError):
    """The answering side reported an error in place of a result."""


class StreamMisconfigured(StreamError):
    """A stream or a permission is not as it must be; the text holds the setting and what mends it."""


class PermissionDenied(StreamError):
    """The NATS user may not publish or subscribe to a subject that we need."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"the NATS user may not use the subject '{subject}': grant it in the server's permissions")
        self.subject = subject


class MessageTooLarge(StreamError):
    """A message is larger than the server's max_payload."""


class ApiRefused(StreamError):
    """JetStream answered a request with an error. `status` is HTTP-like, `error_code` its own number."""

    def __init__(self, request: str, status: int, error_code: int, description: str) -> None:
        super().__init__(f"JetStream refused {request}: {description} (code {error_code or status})")
        self.status = status
        self.error_code = error_code
        self.description = description
