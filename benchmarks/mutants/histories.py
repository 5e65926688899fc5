"""Faults in the nine laws of what was computed, and what it is still worth."""

from __future__ import annotations

from benchmarks.mutants.fault import Mutant

LEDGER = "tests/test_ledger.py::"
LAWS = "tests/test_laws.py::"
BASE = "tests/test_temporal_base.py::"
TREND = "tests/test_trend.py::"

HISTORIES: dict[str, tuple[Mutant, ...]] = {
    "The nine laws of the ledger": (
        Mutant(
            "equal shapes prove it",
            "Law 1: a feature is never read under another layout, be it of the same shape.",
            "ralu_cache/history/ledger.py",
            "if nodes and nodes[0].layout is not layout:",
            "if nodes and nodes[0].layout.tokens != layout.tokens:",
            (LEDGER + "test_no_feature_is_read_under_another_layout",),
        ),
        Mutant(
            "keys and values of any layout",
            "Law 1: keys and values are never read under another layout.",
            "ralu_cache/history/attention.py",
            "        if layout is not self.layout:\n",
            "        if layout.batch != self.layout.batch:\n",
            ("tests/test_row_sparse.py::test_no_memory_is_read_under_another_layout",),
        ),
        Mutant(
            "a merged token is its first child",
            "Law 2: merged tokens get their children's mean, and transfers compose.",
            "ralu_cache/history/feature.py",
            "means = _mean(take(self.values, tokens.children.flatten(1)), tokens.children)",
            "means = values[:, :count]",
            (LEDGER + "test_transfer_by_kind",),
        ),
        Mutant(
            "one child that was computed suffices",
            "Law 3: a token with an empty child is empty.",
            "ralu_cache/history/marks.py",
            "mark.gather(1, children.flatten(1)).view_as(children).amin(2)",
            "mark.gather(1, children.flatten(1)).view_as(children).amax(2)",
            (LEDGER + "test_transfer_by_kind",),
        ),
        Mutant(
            "inherited is as good as computed",
            "Law 3: inherited tokens are reused only where the policy says so.",
            "ralu_cache/history/feature.py",
            "return (self.mark >= (Mark.INHERITED if inherited else Mark.VALID)).all(1)",
            "return (self.mark >= Mark.INHERITED).all(1)",
            (LEDGER + "test_marks_decide_who_may_read",),
        ),
        Mutant(
            "a trend without the marks from before",
            "A sample that was computed once in a stage keeps the trend that it had.",
            "ralu_cache/history/trends.py",
            "mark=torch.where(known, stamps.mark, before.mark)",
            "mark=stamps.mark",
            (TREND + "test_a_sample_that_was_computed_once_keeps_the_trend_that_it_had",),
        ),
        Mutant(
            "more of a trend goes on",
            "How much of a trend goes on behind a transition is what the study found.",
            "ralu_cache/history/residuals.py",
            "DAMPING = 0.4",
            "DAMPING = 0.6",
            (TREND + "test_the_damping_is_the_one_that_the_study_found",),
        ),
        Mutant(
            "fresh noise changes nothing",
            "Law 3: a token into which fresh noise was mixed is inherited at best.",
            "ralu_cache/history/marks.py",
            "        weaker = weaker | changed\n",
            "        pass\n",
            (LEDGER + "test_transfer_by_kind",),
        ),
        Mutant(
            "every policy inherits",
            "Law 3: what a transition leaves behind is what the policy asked for.",
            "ralu_cache/engine/cache.py",
            'self.inherits = policy.transition in ("inherit", "kept")',
            "self.inherits = True",
            ("tests/test_caching.py::test_what_a_transition_leaves_behind[reset]",),
        ),
        Mutant(
            "an interval of 1 reuses",
            "Law 4: where nothing can be reused, the run is the uncached one.",
            "ralu_cache/temporal/taylorseer.py",
            "due = reach >= per_stage(self.interval, situation.stage)",
            "due = reach > per_stage(self.interval, situation.stage)",
            (LAWS + "test_law_4_a_policy_that_cannot_reuse_never_does",),
        ),
        Mutant(
            "max_age is passed over",
            "Law 5: every token is computed in any max_age consecutive steps.",
            "ralu_cache/temporal/base.py",
            "return self.max_age is None or age + 1 < self.max_age",
            "return self.max_age is None or age < self.max_age",
            (BASE + "test_every_sample_is_computed_within_max_age_steps",),
        ),
        Mutant(
            "a stage begins without computing",
            "Law 5: the first step of a stage is computed, unless residuals are inherited.",
            "ralu_cache/temporal/base.py",
            "            or (self.restarts and situation.stage_step == 0)\n",
            "",
            (BASE + "test_first_and_last_steps_and_both_sides_of_a_transition_are_computed",),
        ),
        Mutant(
            "a stage ends without computing",
            "Law 5: the step before a transition is computed, unless the policy says otherwise.",
            "ralu_cache/temporal/base.py",
            "            or (self.compute_stage_end and situation.ends_stage)\n",
            "",
            (BASE + "test_first_and_last_steps_and_both_sides_of_a_transition_are_computed",),
        ),
        Mutant(
            "distances of the whole batch",
            "Law 6: a sample's result does not depend on what else is in the batch.",
            "ralu_cache/temporal/base.py",
            "return torch.stack([(m - before).abs().mean() / before.abs().mean() for m, before in pairs])",
            "return torch.stack([(m - before).abs().mean() / previous.float().abs().mean() for m, before in pairs])",
            (BASE + "test_a_sample_alone_decides_as_in_the_batch",),
        ),
        Mutant(
            "one draw of noise for all",
            "Law 6: a sample's noise comes from its own seed.",
            "ralu_cache/plane/transition.py",
            "        bits = sample.detach()",
            "        bits = noise[0].detach()",
            ("tests/test_transition.py::test_seeded_noise_is_per_sample_and_leaves_the_global_generator_alone",),
        ),
        Mutant(
            "scores go to their neighbours",
            "Law 7: permuting tokens permutes the result.",
            "ralu_cache/temporal/adaptive.py",
            "        return view.measure(self.score)",
            "        return view.measure(self.score).roll(1, 1)",
            ("tests/test_temporal_adaptive.py::test_permuting_tokens_permutes_the_choice",),
        ),
        Mutant(
            "the model's call does not end when it fails",
            "Law 8: a call that dies leaves nothing behind, be it the model's alone.",
            "ralu_cache/engine/root.py",
            "with_kwargs=True, always_call=True),",
            "with_kwargs=True),",
            ("tests/test_ownership.py::test_a_loop_of_ones_own_that_tries_again[flux]",),
        ),
        Mutant(
            "a broken distance is none",
            "Law 9: NaN or infinity in a distance means compute.",
            "ralu_cache/temporal/base.py",
            "            reuse = reuse & distance.isfinite()\n",
            "            pass\n",
            (BASE + "test_a_broken_signal_means_compute_even_to_a_policy_that_does_not_look",),
        ),
    ),
}
