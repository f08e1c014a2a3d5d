"""What the page knows of the server: is it there, is it ready, and which models it has."""

from dataclasses import dataclass

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.types import Model


@dataclass(frozen=True, slots=True)
class Catalog:
    """One look at the server. `error` is why there are no models; then `models` is empty."""

    models: tuple[Model, ...] = ()
    error: ChatError | None = None

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(label, id) for a picker."""
        return [(model.label, model.id) for model in self.models]

    @property
    def summary(self) -> str:
        """How much is served."""
        adapters = sum(not m.is_base and not m.is_pinned for m in self.models)
        return "base and 1 adapter" if adapters == 1 else f"base and {adapters or 'no'} adapters"

    @property
    def is_loading(self) -> bool:
        return self.error is not None and self.error.kind is ErrorKind.LOADING

    @property
    def why_no_model(self) -> ChatError:
        """The error to show to someone who asks although no model could be picked."""
        return self.error or ChatError(
            ErrorKind.UNKNOWN_MODEL, "No model is picked.", "Pick one from the list of models."
        )

    def keep(self, picked: str | None, default: str | None) -> str | None:
        """The picked model while it exists, else the default."""
        return picked if any(model.id == picked for model in self.models) else default


async def look(client: ChatClient) -> Catalog:
    """Ask the server now. Never raises ChatError: that is part of the answer."""
    try:
        await client.check_ready()
        return Catalog(models=tuple(await client.models()))
    except ChatError as error:
        return Catalog(error=error)
