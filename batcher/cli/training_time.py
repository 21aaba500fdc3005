"""One duration for one training, with its parts: as it is forecast, and as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpasift.batcher.engine.progress import duration

if TYPE_CHECKING:
    from alpasift.train.fit.forecast import Forecast
    from alpasift.train.metrics import TimeTaken


def forecast_text(forecast: Forecast) -> str:
    """ "43 min (38 min to 50 min): loading 40 s, training 42 min, saving 3 s". The speed must be known."""
    spread = ""
    if forecast.training_fast != forecast.training_slow:
        spread = f" ({duration(forecast.seconds_fast)} to {duration(forecast.seconds_slow)})"
    return duration(forecast.seconds) + spread + ": " + _parts(**_forecast_parts(forecast))


def taken_text(took: TimeTaken) -> str:
    """ "43 min (loading 40 s, training 42 min, saving 3 s)"."""
    if took.training is None:
        return duration(took.seconds)
    return f"{duration(took.seconds)} ({_parts(took.loading, took.training, took.saving)})"


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """The whole and its parts as JSON has them."""
    parts = {f"{name}_seconds": seconds for name, seconds in _forecast_parts(forecast).items()}
    return {"seconds": forecast.seconds, **parts}


def taken_json(took: TimeTaken) -> dict[str, Any]:
    parts = {"seconds": took.seconds, "loading": took.loading, "training": took.training, "saving": took.saving}
    return {
        name if name == "seconds" else f"{name}_seconds": None if value is None else round(value, 3)
        for name, value in parts.items()
    }


def _forecast_parts(forecast: Forecast) -> dict[str, float | None]:
    return {
        "loading": forecast.loading_seconds,
        "training": forecast.training_seconds,
        "saving": forecast.saving_seconds,
    }


def _parts(loading: float | None, training: float | None, saving: float | None) -> str:
    return f"loading {duration(loading)}, training {duration(training)}, saving {duration(saving)}"
