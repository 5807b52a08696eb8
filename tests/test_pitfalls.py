"""What pipelines for these data got wrong before, and the tests that fail with each mistake in place."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent


class Pitfall(NamedTuple):
    number: int
    mistake: str
    tests: tuple[str, ...]


def pitfall(number, mistake, tests):
    return Pitfall(number, mistake, tuple(tests.split()))


PITFALLS = [
    pitfall(1, "the energy window drops the frame it measures from, and one-frame runs with it", """
        curation/test_energy.py::test_one_frame_is_always_inside
        curation/test_energy.py::test_two_sided_window_per_atom
        curation/test_curate.py::test_one_frame_is_a_trajectory
        curation/test_curate.py::test_a_good_trajectory_is_kept_as_it_is"""),
    pitfall(2, "calculations taken newest first", """
        sources/test_materials_project.py::test_stages_are_chronological_and_complete
        curation/test_energy.py::test_the_window_ends_at_the_last_stage
        test_golden.py::test_mp_runs_end_where_they_ended"""),
    pitfall(3, "a primary task that is rejected takes its material along", """
        releases/test_selection.py::test_lowest_is_primary_and_the_tolerance_is_per_atom
        releases/test_selection.py::test_origin_is_primary_and_both_sides_count
        releases/test_selection.py::test_a_one_frame_origin_is_primary
        releases/test_selection.py::test_an_origin_that_was_rejected_takes_nothing_with_it
        releases/test_selection.py::test_a_duplicate_is_no_primary"""),
    pitfall(4, "energies with and without U compared", """
        releases/test_selection.py::test_run_types_functionals_and_materials_are_not_pooled
        sources/test_materials_project.py::test_gga_and_gga_u_are_told_apart
        test_golden.py::test_gga_and_gga_u_are_told_apart"""),
    pitfall(5, "run types of another spelling vanish without a word", """
        sources/test_vasp_types.py::test_run_type
        sources/test_vasp_types.py::test_only_the_four_functionals_are_folded
        curation/test_records.py::test_unsupported_functional"""),
    pitfall(6, "rows lost at the borders of pages", """
        sources/test_oqmd.py::test_assets_are_ranges_of_ids_whatever_is_in_them
        sources/test_mysqldump.py::test_any_rows_round_trip
        sources/test_alexandria.py::test_chunk_borders"""),
    pitfall(7, "one functional in every configuration", """
        releases/test_hugging_face.py::test_each_configuration_holds_its_own"""),
    pitfall(8, "rows lost and doubled by writing in chunks", """
        releases/test_hugging_face.py::test_shards_lose_and_double_nothing
        releases/test_hugging_face.py::test_manifest_balances
        test_builder.py::test_content_does_not_depend_on_the_number_of_workers"""),
    pitfall(9, "left-over files of an older export reused", """
        releases/test_hugging_face.py::test_refuses_a_folder_in_use
        releases/test_hugging_face.py::test_an_older_version_can_be_released
        releases/test_hugging_face.py::test_same_version_same_bytes"""),
    pitfall(10, "a later test overwrites an earlier exclusion", """
        annotation/test_compatibility.py::test_each_condition_only_takes_away
        annotation/test_compatibility.py::test_oqmd_settings"""),
    pitfall(11, "one bad record takes its batch along", """
        sources/test_alexandria.py::test_a_bad_record_costs_itself
        sources/test_alexandria.py::test_damage_anywhere_in_a_record_costs_nothing_else
        sources/test_materials_project.py::test_a_bad_line_is_one_rejection_and_the_others_are_read
        sources/test_oqmd.py::test_settings_that_cannot_be_read
        sources/test_oqmd.py::test_damaged_structures"""),
    pitfall(12, "two frames with one id when a step count is zero", """
        sources/test_oqmd.py::test_steps_stay_unique_whatever_nsteps_is
        test_pipeline.py::test_repeated_steps_are_an_error
        test_pipeline.py::test_an_id_that_comes_twice_in_an_asset_is_kept_once"""),
    pitfall(13, "ids of entries mistaken for ids of structures", """
        sources/test_oqmd.py::test_real_entry_has_its_known_numbers
        sources/test_oqmd.py::test_findings_of_planted_cases"""),
    pitfall(14, "convergence asked of some relaxations only", """
        sources/test_oqmd.py::test_findings_of_planted_cases
        curation/test_records.py::test_findings_of_the_reader"""),
    pitfall(15, "stress of several units in one column", """
        test_units.py::test_sign_and_size
        test_physics.py::test_real_relaxations
        test_physics.py::test_a_wrong_stress_of_real_relaxations_is_found
        sources/test_oqmd.py::test_stress_is_null_unless_the_recipe_says_kbar
        releases/test_hugging_face.py::test_stress_is_kbar_with_vasp_sign"""),
    pitfall(16, "corrections for U on energies without U", """
        annotation/test_energy_correction.py::test_plus_u_corrections_only_for_plus_u_runs
        annotation/test_energy_correction.py::test_real_calculations_agree_with_pymatgen"""),
    pitfall(17, "guessed potentials lose the corrected energy", """
        annotation/test_energy_correction.py::test_real_calculations_agree_with_pymatgen
        annotation/test_energy_correction.py::test_refusals_have_a_reason"""),
    pitfall(18, "a PBE correction on another functional's energy", """
        annotation/test_energy_correction.py::test_other_functionals_are_not_corrected
        annotation/test_energy_correction.py::test_one_shift_per_calculation_from_its_final_frame
        releases/test_hugging_face.py::test_energy_corrected_is_the_energy_outside_pbe"""),
    pitfall(19, "frames far below the end, and absurd forces, kept", """
        curation/test_energy.py::test_two_sided_window_per_atom
        curation/test_energy.py::test_final_frame_outlier
        curation/test_energy.py::test_max_force"""),
    pitfall(20, "one bad component loses the whole id, or moves the end unnoticed", """
        sources/test_alexandria.py::test_a_bad_frame_costs_itself
        sources/test_alexandria.py::test_a_bad_stress_costs_the_label
        sources/test_alexandria.py::test_an_unusable_end_is_recorded
        curation/test_curate.py::test_the_end_is_recorded_when_the_final_frame_falls"""),
    pitfall(21, "NaN replaced in text, Infinity left in", """
        sources/test_alexandria.py::test_nan_is_parsed_and_not_replaced
        sources/test_pymatgen_json.py::test_decode_leaves_text_alone
        sources/test_materials_project.py::test_text_that_looks_like_nan_survives
        curation/test_labels.py::test_targets"""),
    pitfall(22, "one NaN spoils what comes after it", """
        sources/test_alexandria.py::test_a_bad_frame_costs_itself
        test_codec.py::test_a_missing_stress_is_null_and_its_neighbours_are_not
        annotation/test_symmetry.py::test_failure_is_0_and_costs_its_own_frame"""),
    pitfall(23, "one date for all functionals, one id for both", """
        sources/test_alexandria.py::test_an_id_in_both_functionals_is_two_trajectories
        test_builder.py::test_one_changed_file_is_read_and_replaced_alone"""),
    pitfall(24, "options accepted and ignored", """
        test_recipe.py::test_every_key_is_used_and_described
        test_recipe.py::test_the_digest_changes_with_what_decides_rows_and_with_nothing_else
        test_recipe.py::test_refusals_say_what_and_what_is_allowed_in_one_line
        test_cli.py::test_release_options_act
        test_cli.py::test_a_recipe_file_does_the_same_as_flags"""),
    pitfall(25, "the parent burns a core while it waits", """
        engines/test_local.py::test_the_parent_sleeps_while_it_waits"""),
    pitfall(26, "a field that can be derived is missing and costs all frames", """
        sources/test_materials_project.py::test_a_document_without_composition_keeps_its_frames"""),
    pitfall(27, "NELM of another calculation, compared for equality; later steps renumbered", """
        sources/test_materials_project.py::test_nelm_is_that_of_the_calculation
        curation/test_labels.py::test_electronic_convergence
        curation/test_curate.py::test_numbering_of_the_run_is_kept"""),
    pitfall(28, "never incremental, and old rows stay", """
        test_builder.py::test_unchanged_is_nothing_to_do
        test_builder.py::test_one_moved_threshold_rebuilds_all
        test_builder.py::test_one_flipped_fact_rebuilds_the_assets_with_that_record
        stores/test_delta.py::test_a_commit_replaces_the_rows_of_its_asset_alone"""),
    pitfall(29, "cell vectors as columns", """
        sources/test_oqmd.py::test_cell_rows_are_vectors
        sources/test_pymatgen_json.py::test_vectors_are_rows
        test_physics.py::test_wrong_generated_data_are_found"""),
    pitfall(30, "seconds and hundreds of megabytes to start", """
        test_imports.py::test_nothing_heavy"""),
]  # fmt: skip


@cache
def defined(path):
    """Names of the test functions of a file."""
    tree = ast.parse((TESTS / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_each_pitfall_is_here_once():
    assert [p.number for p in PITFALLS] == list(range(1, 31))


@pytest.mark.parametrize("entry", PITFALLS, ids=lambda p: f"{p.number}")
def test_its_tests_exist(entry):
    assert entry.tests
    for test in entry.tests:
        path, _, name = test.partition("::")
        assert (TESTS / path).is_file(), test
        assert name in defined(path), test
