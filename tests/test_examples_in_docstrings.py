"""The examples in docstrings say what they print."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

NAMES = {"nd": nd, "jax": jax, "jnp": jnp, "numpyro": numpyro, "dist": dist}


@pytest.mark.slow
def test_examples_in_docstrings():
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    objects = 0
    for module in pkgutil.walk_packages(nd.__path__, f"{nd.__name__}."):
        if module.name.endswith("__main__"):
            continue
        for example in finder.find(importlib.import_module(module.name), globs=dict(NAMES)):
            runner.run(example)
            objects += bool(example.examples)
    assert objects >= 30 and not runner.failures
