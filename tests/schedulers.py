"""Schedulers by short names, each with options that it is used with."""

from __future__ import annotations

from typing import Any

import diffusers

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "cosmos": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_max": 80.0, "sigma_min": 0.002}),
    "mochi": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "euler-sample": ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "edm": ("EDMEulerScheduler", {}),
    "edm-v": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim-v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "ddim-sample": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    "ddim-parallel": ("DDIMParallelScheduler", {"clip_sample": False}),
    "cogvideo": ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                 "timestep_spacing": "trailing"}),
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "unipc-epsilon": ("UniPCMultistepScheduler", {}),
    "unipc-v": ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "solver_order": 3}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-flow": ("DPMSolverMultistepScheduler", FLOW),
    "dpm-v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "edm-dpm": ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ipndm": ("IPNDMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "minimax": ("MiniMaxH3Scheduler", {}),
}  # fmt: skip


def scheduler_of(name: str) -> Any:
    cls, options = SCHEDULERS[name]
    return getattr(diffusers, cls).from_config(options)  # also what a pipeline adds to them (Cosmos)
