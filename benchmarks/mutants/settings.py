"""Faults in what surrounds a call: weights that move, parts that are replaced, levels, modes, refusals, guidance."""

from __future__ import annotations

from benchmarks.mutants.fault import Mutant

OFFLOAD = "tests/test_offload.py::"
REPLACED = "tests/test_replaced.py::"
LEVELS = "tests/test_levels.py::"
MODES = "tests/test_modes.py::"
REFUSED = "tests/test_refused.py::"
GUIDANCE = "tests/test_guidance.py::"
SEER = (
    "TaylorSeer(first=1, last=1, compute_stage_end=True, transition='trend', max_age=None, interval=2, order=2, "
    "per_layer=False, ramp=True)"
)

SETTINGS: dict[str, tuple[Mutant, ...]] = {
    "Weights that come and go, modules that are replaced": (
        Mutant(
            "a signal is taken without the weights",
            "Nothing of the model is touched before an offload hook has brought it.",
            "ralu_cache/engine/reading.py",
            "with at_hand(self.module, self._blocks.blocks(self.module)[0]):",
            "if True:",
            (OFFLOAD + "test_what_looks_at_weights_before_the_model_runs[wan-plane-submodules]",),
        ),
        Mutant(
            "a signal is part of the order of layers",
            "What is computed beside the model does not tell an offload hook what follows what.",
            "adapters/weights.py",
            "            tracer.execution_order = order\n",
            "            pass\n",
            ("tests/test_offload.py::test_groups_that_a_stream_brings_ahead_of_time[wan-plane-second]",),
        ),
        Mutant(
            "weights at hand are brought again",
            "What a signal reads is not being copied anew meanwhile.",
            "adapters/weights.py",
            "before, group.onload_self = group.onload_self, True",
            "before = group.onload_self",
            ("tests/test_offload.py::test_groups_that_a_stream_brings_ahead_of_time[wan-plane-second]",),
        ),
        Mutant(
            "offload hooks are not asked",
            "Weights are where they are computed with, and go back afterwards.",
            "adapters/weights.py",
            'getattr(module, "_hf_hook", None), _hook(',
            "None, _hook(",
            (OFFLOAD + "test_what_looks_at_weights_before_the_model_runs[flux-plane-model]",),
        ),
        Mutant(
            "a cache that the model does not know of",
            "Diffusers' own caches do not stack with ours, however they were applied.",
            "ralu_cache/engine/denoisers.py",
            "for hook in hooks if hook._is_stateful), None)",
            "for hook in hooks if False), None)",
            ("tests/test_refused.py::test_diffusers_own_cache_that_a_function_applied_is_refused",),
        ),
        Mutant(
            "hooked once and for all",
            "What is hooked is looked up when a call begins.",
            "ralu_cache/engine/handle.py",
            "        self._refresh(pipe)\n        call = Call(",
            "        call = Call(",
            (REPLACED + "test_another_transformer[flux-teacache-stages]",),
        ),
        Mutant(
            "processors of the user's own stay in front",
            "Attention processors that were set since are taken into account.",
            "ralu_cache/engine/blocks.py",
            "        if self._processors is not None:\n            self._processors.refresh()\n",
            "",
            (REPLACED + "test_processors_set_between_two_calls_are_the_users_afterwards[flux-adaptive]",),
        ),
        Mutant(
            "layers of before",
            "Submodules that LoRA replaced are reached into.",
            "ralu_cache/engine/blocks.py",
            "            self._processors.refresh()\n        if self.layers is not None:\n"
            "            self.layers.refresh()\n",
            "            self._processors.refresh()\n",
            (REPLACED + "test_lora_fused_swapped_and_unloaded_while_accelerated[flux-toca-alone]",),
        ),
        Mutant(
            "the autoencoder of the first call",
            "The autoencoder is the one that the pipeline has now.",
            "ralu_cache/engine/family.py",
            "autoencoder_of(call.pipe)",
            'vars(self).setdefault("_first", autoencoder_of(call.pipe))',
            (REPLACED + "test_another_autoencoder[flux-regions]",),
        ),
        Mutant(
            "tiny autoencoders are not known",
            "An AutoencoderTiny gives latents at once.",
            "ralu_cache/engine/autoencoder.py",
            'encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()',
            "encoded.latent_dist.mode()",
            (REPLACED + "test_the_tiny_autoencoder[flux-lift]",),
        ),
    ),
    "Shares of a run mean noise levels": (
        Mutant(
            "strength counts the plan's steps",
            "`strength` enters a plan at the level at which stock enters its own.",
            "ralu_cache/engine/course.py",
            "entering(self._plan, self.stock.sigmas[entry])",
            "entering(self._plan, self.levels()[min(entry, len(self.places) - 1)])",
            (LEVELS + "test_a_staged_plan_enters_where_stock_enters[flux img2img-0.6]",),
        ),
        Mutant(
            "callbacks are told once a step",
            "A callback is told of every step of the stock schedule, as soon as the run has passed it.",
            "ralu_cache/engine/pipeline.py",
            "while call.told < call.passed and not",
            "if call.told < call.passed and not",
            (LEVELS + "test_callbacks_on_plans_with_steps_of_their_own[flux-alike]",),
        ),
        Mutant(
            "callbacks go on after an interrupt",
            "After an interrupt nothing is told.",
            "ralu_cache/engine/pipeline.py",
            ' and not getattr(pipe, "_interrupt", False)',
            "",
            (LEVELS + "test_nothing_is_told_after_an_interrupt[flux]",),
        ),
        Mutant(
            "a ControlNet's share of the plan's steps",
            "A ControlNet is on and off at the noise levels that the caller's shares mean.",
            "ralu_cache/engine/arguments.py",
            "step, steps = min(run.stock.passed(run.sigma), run.stock.steps - 1), run.stock.steps",
            "step, steps = run.index, len(run.places)",
            (LEVELS + "test_a_controlnets_interval_means_noise_levels[flux-alike]",),
        ),
        Mutant(
            "sigmas of the caller's own are passed over",
            "The caller's own levels are those that a plan divides.",
            "ralu_cache/engine/family.py",
            "        return redivided(stages, sigmas)",
            "        return stages",
            (LEVELS + "test_a_plan_is_laid_out_along_levels_of_the_callers_own[flux]",),
        ),
        Mutant(
            "the bar counts the call's steps",
            "The progress bar's total is the number of steps that are made.",
            "ralu_cache/engine/pipeline.py",
            "bar = make(total=run.total - run.done, **look)",
            "bar = make(total=total, **look)",
            ("tests/test_adapter_conformance.py::test_conformance[the_progress_bar_counts_the_real_steps-sd3]",),
        ),
    ),
    "Modes and numbers": (
        Mutant(
            "no copy in inference mode",
            "What a callback writes to is noticed in inference mode too.",
            "ralu_cache/engine/identity.py",
            "tensor.clone() if version is None and watched else None",
            "None",
            (MODES + "test_a_callback_may_change_latents_in_inference_mode[flux]",),
        ),
        Mutant(
            "latents changed in place are passed over",
            "A latent that a callback wrote to replaces the canvas.",
            "ralu_cache/engine/canvas.py",
            "        return emitted.untouched\n",
            "        return True\n",
            (MODES + "test_a_callback_may_change_latents_in_inference_mode[flux]",),
        ),
        Mutant(
            "slopes of half precision",
            "Differences are taken and divided in float32.",
            "ralu_cache/history/residuals.py",
            "wide = torch.promote_types(newest[1].dtype, torch.float32)",
            "wide = newest[1].dtype",
            ("tests/test_temporal_forecast.py::test_a_slope_of_half_precision_is_taken_in_float32",),
        ),
        Mutant(
            "forecasts overflow",
            "A forecast of float16 values is finite.",
            "ralu_cache/history/residuals.py",
            "    if dtype == torch.float16:",
            "    if dtype == torch.bfloat16:",
            (MODES + f"test_residuals_of_half_precision_that_change_fast[{SEER}-alone]",),
        ),
        Mutant(
            "gradients through what cannot carry them",
            "A policy through which no gradients flow refuses them by name.",
            "ralu_cache/engine/groups.py",
            'if prediction.requires_grad and branch.policy.caches != "stack":',
            'if prediction.requires_grad and branch.policy.caches == "all":',
            (MODES + "test_gradients_flow_or_are_refused[flux-toca-alone-False]",),
        ),
        Mutant(
            "reused residuals carry no gradients",
            "Gradients flow through residuals that are reused.",
            "ralu_cache/engine/blocks.py",
            "residual = self.left - entered\n",
            "residual = (self.left - entered).detach()\n",
            (MODES + "test_gradients_flow_through_what_is_reused[flux]",),
        ),
        Mutant(
            "counting steps asks the device",
            "A policy that counts steps never waits for the device.",
            "ralu_cache/temporal/base.py",
            'return CountState(self, batch, "cpu")',
            "return RuleState(self, batch, device)",
            ("tests/test_host_reads.py::test_counting_steps_never_waits[taylorseer:2-flux]",),
        ),
    ),
    "Refused by name, before anything was changed": (
        Mutant(
            "the first handle goes before the second is made",
            "A refused second accelerate() leaves the first in force.",
            "ralu_cache/api.py",
            "    return _installed(pipe, FamilyAcceleration(",
            "    if (first := handle_of(pipe)) is not None:\n        first.disable()\n"
            "    return _installed(pipe, FamilyAcceleration(",
            (REFUSED + "test_a_second_accelerate_that_the_model_refuses_leaves_the_first_in_force[flux]",),
        ),
        Mutant(
            "any pipeline of a known model",
            "A pipeline that no adapter serves is refused, whatever its transformer.",
            "adapters/registry.py",
            "if adapter.matches(transformer) and names.intersection(adapter.pipelines):",
            "if adapter.matches(transformer):",
            (REFUSED + "test_pipelines_that_no_adapter_can_serve[VisualClozeGenerationPipeline-teacache]",),
        ),
        Mutant(
            "layers are not asked for",
            "What a family's adapter lacks a part for is refused, with what is missing and what works.",
            "ralu_cache/engine/parts.py",
            """need(family, "blocks" if policy.caches == "stack" else "layers", """,
            """need(family, "blocks", """,
            ("tests/test_adapter_parts.py::test_a_family_without_layers",),
        ),
        Mutant(
            "stages are not asked for",
            "A family that lacks stages is refused them before anything was changed.",
            "ralu_cache/engine/parts.py",
            """        need(family, "tokens", f"spatial={spatial!r}")\n""",
            "",
            ("tests/test_adapter_parts.py::test_a_family_without_stages",),
        ),
        Mutant(
            "another cache is not noticed",
            "Diffusers' own cache, switched on later, is refused at the call.",
            "ralu_cache/engine/denoisers.py",
            "            check(transformer, self._family, policy, self._reuses)\n",
            "",
            (REFUSED + "test_diffusers_own_cache_enabled_later_is_refused_at_the_call[flux-seacache]",),
        ),
        Mutant(
            "schedulers are asked once",
            "A scheduler that cannot be served is refused at the call.",
            "ralu_cache/engine/handle.py",
            '        self.check(vars(pipe)["scheduler"])  # it may have been replaced\n',
            "",
            (REPLACED + "test_a_scheduler_that_cannot_be_served_is_refused_at_the_call[flux]",),
        ),
        Mutant(
            "slower without a word",
            "A setting that makes a call slower than stock says so.",
            "ralu_cache/engine/family.py",
            "run.tally.flops > 1.001 * report.baseline_flops",
            "run.tally.flops > 1000 * report.baseline_flops",
            (REFUSED + "test_a_setting_that_is_slower_than_stock_says_so_once[flux]",),
        ),
    ),
    "Guidance where it decides": (
        Mutant(
            "the wrong half",
            "Where guidance is left out, the prediction with the prompt is the one that is computed.",
            "ralu_cache/engine/guided.py",
            'index = [*asked, *range(batch, 2 * batch)] if form == "stack" else asked',
            'index = [*(batch + row for row in asked), *range(batch)] if form == "stack" else asked',
            (
                GUIDANCE + "test_steps_without_guidance_are_those_of_the_pipeline_given_c_for_both"
                "[until-sd3-None-True-(0, 1)]",
            ),
        ),
        Mutant(
            "another factor",
            "A scale of guidance is that of the call with this scale.",
            "ralu_cache/plane/guidance.py",
            "(wanted - none) / (scale - none)",
            "wanted / scale",
            (GUIDANCE + "test_a_scale_of_a_stage_is_that_of_the_call[flux]",),
        ),
        Mutant(
            "guided steps are answered too",
            "A call is answered without the model only where no sample is guided.",
            "ralu_cache/engine/guided.py",
            "    guided = run.guided(len(conditional))\n"
            "    return None if any(guided) else",
            "    guided = [False] * len(conditional)\n"
            "    return None if any(guided) else",
            (GUIDANCE + "test_early_is_until_the_fine_stage_or_half_of_the_time[flux]",),
        ),
        Mutant(
            "one sample stops all",
            "Each sample decides for itself where its predictions agree.",
            "ralu_cache/engine/guided.py",
            "            agreed.append(sample)",
            "            agreed.extend(range(len(guided)))",
            (GUIDANCE + "test_samples_whose_predictions_agree_stop_by_themselves[flux-False]",),
        ),
        Mutant(
            "held as it was",
            "A held difference counts times sigma over the level at which it was computed.",
            "ralu_cache/engine/guided.py",
            "return c - (run.sigma / sigma) * difference",
            "return c - difference",
            (GUIDANCE + "test_a_held_difference_stands_in_times_sigma[sd3]",),
        ),
        Mutant(
            "early by time on every plan",
            "On stages, early means the stages that are not fine.",
            "ralu_cache/plane/guidance.py",
            "return not fine[stage] if len(fine) > 1 else 1 - sigma < EARLY",
            "return 1 - sigma < EARLY",
            (GUIDANCE + "test_early_is_until_the_fine_stage_or_half_of_the_time[flux]",),
        ),
    ),
}
