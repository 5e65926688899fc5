"""Faults in what belongs to a call of a pipeline, and in who a branch computes."""

from __future__ import annotations

from benchmarks.mutants.fault import Mutant

OWNERSHIP = "tests/test_ownership.py::"
BRANCHES = "tests/test_branches_change.py::"

CALLS: dict[str, tuple[Mutant, ...]] = {
    "A run belongs to one call": (
        Mutant(
            "pauses are not asked for",
            "While a callback runs, nothing belongs to the call.",
            "ralu_cache/engine/context.py",
            "            return None if isinstance(entry, Pause) else entry\n"
            "        entries",
            "            if not isinstance(entry, Pause):\n"
            "                return entry\n"
            "        entries",
            (OWNERSHIP + "test_a_pipeline_called_inside_a_callback[flux-teacache-stages]",),
        ),
        Mutant(
            "a global in place of the context",
            "A thread without the call's context is stock.",
            "ralu_cache/engine/context.py",
            "_ENTRIES: contextvars.ContextVar[tuple[weakref.ref[Any], ...]] = "
            'contextvars.ContextVar("ralu_cache", default=())',
            "class _Global:\n    value: Any = ()\n\n    def get(self) -> Any:\n        return self.value\n\n"
            "    def set(self, value: Any) -> None:\n        self.value = value\n\n\n_ENTRIES = _Global()",
            (OWNERSHIP + "test_threads_one_accelerated_and_one_stock[flux-taylorseer-stages]",),
        ),
        Mutant(
            "any call serves any handle",
            "Two settings on one transformer do not see each other.",
            "ralu_cache/engine/root.py",
            "if call is None or call.handle is not self.handle or call.run is None:",
            "if call is None or call.run is None:",
            (OWNERSHIP + "test_two_settings_on_one_transformer_at_once[flux]",),
        ),
        Mutant(
            "the root's state hangs on the hook",
            "What a denoiser does for a call hangs on that call, so several may be under way.",
            "ralu_cache/engine/root.py",
            "        state = call.states.get(self)\n"
            "        if state is None:\n"
            "            state = call.states[self] = RootState(self, StackState())\n",
            '        state = call.states[self] = vars(self).setdefault("kept", RootState(self, StackState()))\n',
            (OWNERSHIP + "test_one_accelerated_pipeline_in_several_threads[flux-teacache-stages]",),
        ),
        Mutant(
            "whoever calls within the model's call is served",
            "A call of the denoiser within its call is stock, unless it is the run's own second one.",
            "ralu_cache/engine/states.py",
            "return self.depth == (2 if self.nested else 1)",
            "return self.depth > 0",
            (OWNERSHIP + "test_the_model_called_inside_its_own_call_is_stock[flux]",),
        ),
        Mutant(
            "the scheduler is shared",
            "A call has a scheduler of its own, and the user's stays as it is.",
            "ralu_cache/engine/scheduler.py",
            "mine = copy.copy(scheduler)",
            "mine = scheduler",
            (OWNERSHIP + "test_the_scheduler_is_the_users_own_outside_of_a_call[flux]",),
        ),
        Mutant(
            "private attributes are the pipeline's",
            "What the stock call stores on the pipeline is the call's own.",
            "ralu_cache/engine/attributes.py",
            "            call.own[name] = value\n",
            "            pass\n",
            (OWNERSHIP + "test_one_accelerated_pipeline_in_several_threads[sd3-seacache-stages]",),
        ),
        Mutant(
            "an interrupt is the call's own",
            "An interrupt comes from outside, so it is the pipeline's.",
            "ralu_cache/engine/pipeline.py",
            '_SHARED = {"_interrupt"}',
            "_SHARED: set[str] = set()",
            (OWNERSHIP + "test_an_interrupt_from_another_thread_ends_the_loop[flux]",),
        ),
        Mutant(
            "disable() does not wait",
            "A handle that is disabled in a callback serves until the end of the call.",
            "ralu_cache/engine/handle.py",
            "            if len(self._calls):\n                return\n",
            "",
            (OWNERSHIP + "test_disable_and_accelerate_inside_a_callback_wait_for_the_next_call[flux]",),
        ),
        Mutant(
            "a replaced handle undresses",
            "A handle that was replaced has no say any more.",
            "ralu_cache/engine/pipeline.py",
            "    if vars(pipe).get(HANDLE) is handle:\n        pipe.__class__ = stock_of",
            "    if HANDLE in vars(pipe):\n        pipe.__class__ = stock_of",
            (OWNERSHIP + "test_accelerate_replaces_and_never_stacks[flux]",),
        ),
        Mutant(
            "a copy is stock",
            "A deep copy or a pickle is accelerated like its original.",
            "ralu_cache/engine/pipeline.py",
            "    self.__class__ = stock_of(type(self))\n    again(self)",
            "    self.__class__ = stock_of(type(self))",
            ("tests/test_saved_copied.py::test_a_deep_copy_or_a_pickle_is_accelerated[flux-teacache-stages]",),
        ),
        Mutant(
            "hooks go along into copies",
            "A copy of the transformer is stock.",
            "adapters/hooks.py",
            "        return Gone, ()",
            "        return Hook, (self.function,)",
            ("tests/test_saved_copied.py::test_copies_of_the_parts_are_stock[flux-teacache-stages]",),
        ),
    ),
    "Nothing outlives its call": (
        Mutant(
            "the progress bar holds the run",
            "No cycle of references holds a run.",
            "ralu_cache/engine/pipeline.py",
            "weakref.ref(call)\n\n        def update",
            "(lambda held=call: held)\n\n        def update",
            (OWNERSHIP + "test_nothing_of_a_run_outlives_its_call[flux-teacache-stages]",),
        ),
        Mutant(
            "a view of the tokens holds its branch",
            "No cycle of references holds what was cached.",
            "ralu_cache/engine/cache.py",
            "measure = partial(measured, self.ledger, self.layout, self.memory, self.layers)",
            "self.held = measure = lambda name: measured(self.ledger, self.layout, self.memory, self.layers, name)",
            (OWNERSHIP + "test_nothing_of_a_run_outlives_its_call[flux-adaptive-stages]",),
        ),
    ),
    "A branch is the samples that it computes": (
        Mutant(
            "known by its number",
            "A branch is known by what it computes, not by being the n-th call of a step.",
            "ralu_cache/engine/branchbook.py",
            "if branch.identity.is_still(numbers, tensors, settings):",
            "if branch.identity is not None:",
            (BRANCHES + "test_what_is_reused_has_the_name_of_what_was_asked_for",),
        ),
        Mutant(
            "samples with one prompt are one",
            "Of two pictures of the same prompt, neither reads what the other computed.",
            "ralu_cache/engine/identity.py",
            "if known == sample and other not in found",
            "if other not in found",
            (BRANCHES + "test_of_two_pictures_of_one_prompt_the_second_remains",),
        ),
        Mutant(
            "conditioning is not compared",
            "Another prompt is another branch.",
            "ralu_cache/engine/identity.py",
            "            if not torch.equal(_row(ours, row, len(self.samples)), "
            "_row(theirs, other, len(earlier.samples))):\n                return False\n",
            "",
            (BRANCHES + "test_a_prompt_that_a_callback_exchanges[sd3-seacache-alone-as long]",),
        ),
        Mutant(
            "writing in place goes unnoticed",
            "A prompt that was written to is another prompt.",
            "ralu_cache/engine/identity.py",
            " is not snapshot.tensor or not snapshot.untouched:",
            " is not snapshot.tensor:",
            (BRANCHES + "test_a_prompt_that_a_callback_exchanges[flux-seacache-alone-in place]",),
        ),
        Mutant(
            "skipped layers are not asked for",
            "A call that leaves layers out is a branch of its own.",
            "ralu_cache/engine/identity.py",
            "if self.settings != earlier.settings or self.tensors.keys() != earlier.tensors.keys():",
            "if self.tensors.keys() != earlier.tensors.keys():",
            (BRANCHES + "test_what_leaves_layers_out_is_never_taken_for_what_does_not",),
        ),
        Mutant(
            "the first rows remain",
            "Of a batch that shrinks, the samples that remain go on, whichever they are.",
            "ralu_cache/engine/batch.py",
            "kept = survivors(same, rows * own // most)",
            "kept = [*range(rows * own // most)]",
            (BRANCHES + "test_a_batch_that_shrinks_in_a_loop_of_ones_own[flux-seacache-alone-(2,)]",),
        ),
        Mutant(
            "a branch that paused goes on",
            "A branch that left out a step begins anew.",
            "ralu_cache/engine/branchbook.py",
            "self._before, self._used = self._used, []",
            "self._before, self._used = [*self._used, *self._before], []",
            ("tests/test_guidance.py::test_a_paused_branch_begins_anew",),
        ),
        Mutant(
            "one branch for two calls of a step",
            "A branch serves one call a step.",
            "ralu_cache/engine/branchbook.py",
            " or branch in used:",
            ":",
            (BRANCHES + "test_two_calls_of_one_prompt_in_a_step_are_two_branches",),
        ),
        Mutant(
            "one branch for two models",
            "What one transformer computed, the other never reads.",
            "ralu_cache/engine/branchbook.py",
            "if branch.denoiser is denoiser and branch not in",
            "if branch not in",
            ("tests/test_wan.py::test_one_transformer_never_reuses_what_the_other_has_computed",),
        ),
        Mutant(
            "residuals are broadcast",
            "A residual of another shape never stands in.",
            "ralu_cache/engine/blocks.py",
            "if residual.shape != image.shape:",
            "if residual.dim() != image.dim():",
            ("tests/test_caching.py::test_a_residual_of_another_shape_never_stands_in",),
        ),
        Mutant(
            "a probe believes what it sees",
            "Blocks are left out only where all that they do goes through the head.",
            "ralu_cache/engine/probing.py",
            "if not bases or not _same(output, without):",
            "if not bases:",
            ("tests/test_probe.py::test_what_is_not_found_is_said",),
        ),
        Mutant(
            "a probe lets the blocks run",
            "A forward that comes to its blocks in another way than by a loop is refused.",
            "ralu_cache/engine/probing.py",
            "    if ran:",
            "    if False:",
            ("tests/test_probe.py::test_what_is_not_found_is_said",),
        ),
        Mutant(
            "a branch without its prompt",
            "Branches of a denoiser without an adapter are told by all tensors among the arguments.",
            "adapters/probed.py",
            "return dict(tensors_in(given)), tuple(settings_in(given))",
            "return {}, tuple(settings_in(given))",
            ("tests/test_probe.py::test_branches_are_told_by_what_they_are_given",),
        ),
    ),
}
