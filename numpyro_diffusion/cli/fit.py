"""``numpyro-diffusion fit``: from an array of examples to a prior file.

Learning is all `fit_prior`'s; the command adds files. The plan is made beforehand with the same key and choices, for
the card of the prior: data, settings, reasons, the dequantisation and the columns' names, which `evaluate` reads from
there, and K of the held-out examples. A checkpoint lies beside the output, so that the same command goes on after an
interrupt, and is removed at the end unless it was asked for by name. Output and checkpoint are tried for writing before
anything is learned.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..networks import UNET_SIZES, UNet
from ..training import BelowBaselineWarning, fit_prior, plan_prior
from ._arguments import writable
from ._context import read_context
from ._tables import read_examples

BAD_INPUT_STATUS = 2


def run(options: argparse.Namespace) -> None:
    """Plan, train, save, and say the validation K."""
    output = writable("--output", options.output)
    checkpoint = writable("--checkpoint", options.checkpoint or f"{options.output}.checkpoint")
    data, columns = read_examples(options.data)
    key, network_key = jax.random.split(jax.random.key(options.seed))
    choices: dict[str, Any] = {"family": options.family, "dequantize": options.dequantize,
                               "max_steps": options.max_steps, "kind": options.kind}  # fmt: skip
    own = options.network not in (None, "mlp")
    if own and options.context is not None:
        raise ValueError(f"--network: expected 'mlp' with --context, got {options.network!r}")
    if options.kind is None and not own and (options.network is not None or options.context is not None):
        choices["kind"] = "vector"  # as `fit_prior` has it with a context
    if own:
        choices["network"] = UNet(network_key, data.shape[1:], **UNET_SIZES[options.network.removeprefix("unet-")])
    told: dict[str, Any] = {"context_dropout": options.context_dropout}
    if options.context is not None:
        told["context"] = read_context(options.context)
    plan = plan_prior(key, data, **choices)  # the same choices as `fit_prior` makes, to be recorded
    if not options.quiet and checkpoint.exists():
        print(f"resuming from {checkpoint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BelowBaselineWarning)  # the verdict is printed, and in the card
            prior = fit_prior(
                key, data, **choices, **told, batch_size=options.batch_size, learning_rate=options.learning_rate,
                checkpoint=checkpoint, progress_bar=not options.quiet,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"(the state is in {checkpoint}: the same command goes on from there)") from None
    card = _card(options, data, plan) | _validation(prior)
    if columns is not None:
        card["columns"] = list(columns)
    prior.save(output, dtype=options.dtype, card=card)
    if options.checkpoint is None:
        for file in [checkpoint, *checkpoint.parent.glob(f"{checkpoint.name}.*")]:
            file.unlink(missing_ok=True)
    print(f"wrote {output} ({output.stat().st_size / 1e3:.0f} kB); {_said(card)}")


def _card(options: argparse.Namespace, data: np.ndarray, plan: Any) -> dict[str, Any]:
    used = {"--max-steps": plan.max_steps, "--batch-size": options.batch_size, "--learning-rate": options.learning_rate,
            "--family": options.family, "--dequantize": options.dequantize, "--network": options.network,
            "--kind": options.kind, "--dtype": options.dtype, "--seed": options.seed,
            "--context": options.context and Path(options.context).name,
            "--context-dropout": options.context_dropout or None}  # fmt: skip
    settings = " ".join(f"{name} {value}" for name, value in used.items() if value is not None)
    return {
        "data": f"{Path(options.data).name}: {len(data)} examples of shape {data.shape[1:]}",
        "command": f"numpyro-diffusion fit DATA -o FILE {settings}",
        "plan": list(plan.reasons),
        "dequantize": plan.dequantize,
    }


def _validation(prior: Any) -> dict[str, Any]:
    """K of the held-out examples, and what simple models say of them."""
    report = prior.report()
    if report.prior is None:
        return {"verdict": report.verdict}
    kind = "probability" if prior.process.diffusion.is_discrete else "density"
    return {
        "bound": report.prior.value,
        "bound_error": report.prior.error,
        "bound_step": report.steps,
        "unit": f"nats per example (log {kind}), mean of the examples held out for validation",
        "verdict": report.verdict,
    }


def _said(card: dict[str, Any]) -> str:
    if "bound" not in card:
        return "too few examples to hold any out for validation"
    value = f"validation K {card['bound']:.4f} ± {card['bound_error']:.4f} nats at step {card['bound_step']}"
    return f"{value}; {card['verdict']}"
