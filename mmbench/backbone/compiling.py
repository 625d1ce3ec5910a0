"""torch.compile for the blocks: settings under which a failure is loud, and a watch on what is compiled and when."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch

from mmbench.errors import ConfigError

VARIANTS = 64
"""Of one function: a number of tokens, what needs a gradient and what a method added each make one."""


@lru_cache(maxsize=8)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile, which runs nothing uncompiled without saying so.

    torch's settings are those of the process. Raises ConfigError where the environment has switched it off.
    """
    from torch._dynamo import config  # seconds of import, for those alone who ask for it

    if config.disable:
        raise ConfigError("budget.compile is on, but TORCH_COMPILE_DISABLE switches it off; unset one of them")
    config.suppress_errors = False
    config.recompile_limit = VARIANTS
    config.fail_on_recompile_limit_hit = True
    return torch.compile(function)


class CompileWatch:
    """Keeps a context open while torch compiles; an error of the compiler leaves as a ConfigError."""

    def __init__(self, on: bool, around: Callable[[], AbstractContextManager[object]]) -> None:
        self.seen = False
        """Whether something was compiled."""
        self._on = on
        self._around = around
        self._open = ExitStack()

    def __enter__(self) -> CompileWatch:
        if self._on:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self._start)
            callback_handler.register_end_callback(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._on:
            return
        from torch._dynamo.callback import callback_handler
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)
        if isinstance(error, (TorchDynamoException, FailOnRecompileLimitHit)):
            raise ConfigError(
                f"budget.compile: torch.compile failed with {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}; "
                "leave budget.compile out, or see what torch says with TORCH_LOGS=dynamo,inductor"
            ) from error

    def _start(self, _: object) -> None:
        self.seen = True
        self._open.enter_context(self._around())

    def _end(self, _: object) -> None:
        self._open.close()
