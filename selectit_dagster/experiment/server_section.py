"""The section on a scoring model behind a server: addresses, or a command that starts one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from selectit_dagster.errors import SECRET_NAME
from selectit_dagster.experiment.section import Line, Section
from selectit_dagster.registry import SERVERS

_PORT = "{port}"


class ServerSection(Section):
    """A vLLM or SGLang server that rates in place of weights in this process."""

    kind: Line = Field("vllm", description="vllm, sglang, or a kind that another package adds")
    url: tuple[Line, ...] = Field(
        (), description="address, or list of addresses with one queue: http://gpu-1:8000"
    )
    model: Line | None = Field(
        None, description="the model's name there; default: the only one that it serves"
    )
    launch: tuple[Line, ...] | None = Field(
        None,
        min_length=1,
        description="instead of url: command and arguments that start a server for the stage, no "
        "shell; {port} and {model} (this model's path) are filled in, the log is kept",
    )
    in_flight: int = Field(32, ge=1, le=1024, description="requests in flight per address")
    api_key_env: Line = Field(
        "VLLM_API_KEY",
        description="environment variable with the API key, which goes into the header alone",
    )
    timeout_seconds: float = Field(600, gt=0, description="how long one answer may take")
    patience_seconds: float = Field(
        120, gt=0, description="how long no address may answer before the stage ends"
    )
    start_seconds: float = Field(1800, gt=0, description="how long a launched server may load")

    @field_validator("kind")
    @classmethod
    def _is_known(cls, value: str) -> str:
        SERVERS.named(value, "kind")
        return value

    @field_validator("url", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return (value,) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            try:
                parts = urlsplit(url)
                whole = parts.scheme in ("http", "https") and bool(parts.hostname)
                _ = parts.port
            except ValueError:
                whole = False
            if not whole or parts.query or parts.fragment:
                raise ValueError("an address is http://HOST:PORT or https://HOST, nothing after it")
            if "@" in parts.netloc:
                raise ValueError("an address holds no name or password: see api_key_env")
        plain = tuple(url.rstrip("/").removesuffix("/v1") for url in value)
        if len(set(plain)) != len(plain):
            raise ValueError("an address stands here twice")
        return plain

    @field_validator("api_key_env")
    @classmethod
    def _is_seen_as_secret(cls, value: str) -> str:
        # whatever is logged or stored leaves out the values of variables named so
        if not value.isidentifier() or not SECRET_NAME.search(value):
            raise ValueError("a variable's name with API_KEY, TOKEN or SECRET in it")
        return value

    @field_validator("launch")
    @classmethod
    def _is_a_command(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if any(part.startswith("--api-key") for part in value):
            raise ValueError(
                "no key stands in a command: the server inherits the variable of api_key_env"
            )
        if not any(_PORT in part for part in value):
            raise ValueError("the command takes its port as {port}, for instance --port {port}")
        return value

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> ServerSection:
        if bool(self.url) == (self.launch is not None):
            raise ValueError("give url (a server that is there) or launch (one to start)")
        return self
