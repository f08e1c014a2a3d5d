"""Every knob of the server: one line of meaning, a unit, a default. Read once, by __main__."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """Serve a chat model and its LoRA adapters on a CPU, over OpenAI's chat completions API.

    Every flag is an environment variable too: --max-context is LORACHAT_MAX_CONTEXT. The flag wins.
    `python -m server doctor …` checks the same settings instead, `python -m server bench …` measures the machine.
    """

    model_config = SettingsConfigDict(
        env_prefix="LORACHAT_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_prog_name="python -m server",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        extra="ignore",
    )

    model: str = Field(description="base model: a hub id, a folder or a GGUF file")
    base_id: str | None = Field(
        None,
        description="the base's name; adapters trained without its float weights at hand are matched by it;"
        " default: the hub id, or the folder's or file's name",
    )
    adapters: Path | None = Field(
        Path("adapters"), description="folder with the published adapters (may be empty or absent)"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads that compute; default: the cores it may use"
    )
    max_context: int | None = Field(
        None,
        ge=16,
        description="tokens of prompt and answer together; default: the model's, at most 8192",
    )
    kernel: Literal["auto", "avx512", "avx2", "neon", "plain", "torch"] = Field(
        "auto",
        description="what computes: the best compiled kernel for this processor, a certain one, or torch",
    )
    max_running: int = Field(16, ge=1, le=256, description="answers computed at the same time")
    max_waiting: int = Field(
        64, ge=0, description="answers that may wait; more are refused with 429"
    )
    max_waiting_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens that may wait; more are refused with 429; default: what the KV cache holds",
    )
    max_answer_tokens: int | None = Field(
        None,
        ge=1,
        description="largest token limit that a request may ask for; default: what the context holds",
    )
    request_timeout: float = Field(
        3600.0,
        gt=0,
        description="time for a whole request, in seconds; less where its header x-request-timeout says so",
    )
    stall_seconds: float = Field(
        30.0,
        gt=0,
        description="patience with a caller that sends or reads nothing; a request must arrive whole in this time",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="open connections; at the limit idle ones are closed, and with none idle a request gets a 503;"
        " default: 512, or what the limit of open files allows",
    )
    max_choices: int = Field(8, ge=1, le=128, description="largest n of a request")
    max_step_tokens: int = Field(
        256, ge=1, description="tokens per step: a long prompt is computed in pieces of this size"
    )
    max_prefill_tokens: int = Field(
        64,
        ge=1,
        description="the same while answers are being written: what a prompt may delay them by, in tokens per step",
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        le=2**20,
        description="memory for keys and values, cached prefixes included, in GiB; default: what eight full"
        " contexts take, at most half of the memory (of the container, if it has a limit) that the weights leave",
    )
    adapter_memory_gib: float | None = Field(
        None,
        gt=0,
        le=2**20,
        description="memory for adapters, in GiB; those not used for longest leave it and come back on demand; default:"
        " a quarter of the memory (of the container, if it has a limit) that the weights leave",
    )
    allow_unsigned_adapters: bool = Field(
        False,
        description="serve adapters without a manifest too, as PEFT, TRL or Unsloth save them: whoever can write to the"
        " folder can change them unnoticed",
    )
    speculation: bool = Field(
        True,
        description="guess tokens from the text so far and compute them together; never changes an answer",
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="largest request body, in bytes")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="accepted API keys, separated by commas; none means no key is asked for"
    )
    api_key_file: Path | None = Field(
        None,
        description="TOML file with the digests of API keys and what each may do; read again when it changes"
        " (`python -m server key NAME` makes a key)",
    )
    admin_key: SecretStr | None = Field(
        None, description="key that opens the admin routes (and all others)"
    )
    admin_host: str = Field("127.0.0.1", description="address of the admin port")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="second port, and then the only one, for the admin routes and /metrics",
    )
    public_metrics: bool = Field(
        True,
        description="whether /metrics answers at the public port too where there is an admin port",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="web pages of other origins that may use the API, separated by commas"
        " (https://chat.example.org; * is all)",
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="host names, separated by commas, that a server without keys answers to besides addresses and"
        " local names",
    )
    keepalive_seconds: float = Field(
        15.0, gt=0, description="silence in a stream after which a comment line is sent"
    )
    adapter_poll_seconds: float = Field(
        5.0, gt=0, description="how often the adapters folder is looked at for new versions"
    )
    drain_seconds: int = Field(
        30, ge=0, description="time that running answers have to finish after SIGTERM"
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="how a line of log looks: text, or one JSON object"
    )
    log_content: bool = Field(
        False, description="prompts and answers in the log and in traces; off, no text of a user is"
    )
    otel_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector that gets a trace of each request, over OTLP/HTTP, for example"
        " http://127.0.0.1:4318; default: what the OTEL_EXPORTER_OTLP_* variables say, and without them none",
    )

    @field_validator("api_keys", "cors_origins", "trusted_hosts", mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _plain_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        # A header carries ASCII; another character would make a key that no client can send.
        if not all(key.get_secret_value().isascii() for key in keys):
            raise ValueError("keys must be ASCII")
        return keys

    @field_validator("admin_key")
    @classmethod
    def _plain_admin_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not (key.get_secret_value().isascii() and key.get_secret_value()):
            raise ValueError("a key must be ASCII and not empty")
        return key

    @model_validator(mode="after")
    def _check_ports(self) -> Settings:
        if self.admin_port and self.admin_port == self.port:
            raise ValueError("--admin-port must differ from --port")
        if self.admin_key is not None and self.admin_key in self.api_keys:
            raise ValueError("LORACHAT_ADMIN_KEY must not be one of LORACHAT_API_KEYS too")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the public port."""
        return self.host in LOOPBACK
