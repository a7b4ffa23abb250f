"""Compiles each model of the suite once."""

import copy

import pytest

from flowmbpo.envs.dmcontrol.suite import load_suite_task


@pytest.fixture(scope="session", autouse=True)
def models_are_compiled_once():
    """Compiling takes nearly all of the time that an environment takes to load: each one gets a copy of the model."""
    load_suite_task("pendulum-spin")  # imports dm_control as the product does
    from dm_control.mujoco.wrapper import core

    compile_model, kept = core._get_model_ptr_from_xml, {}

    def compiled(xml_path=None, xml_string=None, assets=None):
        key = (xml_path, xml_string, tuple(sorted((assets or {}).items())))
        if key not in kept:
            kept[key] = compile_model(xml_path=xml_path, xml_string=xml_string, assets=assets)
        core._LAST_PARSED_MODEL_PTR = copy.copy(kept[key])  # which keeps the last one alive, as without this
        return core._LAST_PARSED_MODEL_PTR

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "_get_model_ptr_from_xml", compiled)
        yield
