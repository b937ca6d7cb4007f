"""The study that the options of `mlxroles ablate` describe."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.cli.ablate import POSITION_TESTS
from mlxroles.cli.inputs import chosen_prompts
from mlxroles.errors import SpecError, VectorError
from mlxroles.heads import head_name
from mlxroles.studies.ablate import ablation
from mlxroles.studies.ablate.ablation import Ablation, Head, Sizes
from mlxroles.studies.ablate.head_list import is_source, read_heads
from mlxroles.studies.subject import Subject, attention_heads, key_heads, stream_width
from mlxroles.text import did_you_mean, safe_text

Given = Mapping[str, Any]

TOP = 8
"""Pairs of heads, or heads of a table, at most."""

_NAMED_HEADS = (
    "--test {} is about some heads: name them with --heads, as L5H8,L6H1, induction or a table "
    "of candidates"
)


def planned(subject: Subject, given: Given) -> Any:
    """The study.

    Raises:
        SpecError: options that do not belong together, or heads, layers or files that are not
            there.
        PromptError: prompts that cannot be used.
        VectorError: a direction that does not fit.
    """
    sizes = Sizes(subject.n_layers, attention_heads(subject), key_heads(subject))
    _check(given)
    if given["test"] in POSITION_TESTS:
        return _at_positions(subject, given, sizes)
    from mlxroles.studies.ablate.study import Ablate
    from mlxroles.studies.ablate.work import Options

    directions: dict[int, Any] = {}
    parts = None
    if given["direction"] is not None:
        what, directions = _direction(subject, given)
    elif given["components"] is not None:
        parts = _parts(subject, given)
        what = parts.ablations(growing=given["test"] == "joint")
    else:
        what = _ablations(given, sizes)
    prompts, targets = _prompts(subject, given, what)
    factors = given["factors"] or ("1,.5,0" if given["method"] == "scale" else None)
    options = Options(
        test=given["test"],
        method=given["method"],
        factors=ablation.parse_factors(factors) if factors else (),
        positions=given["positions"] or "all",
        random=given["random"],
        seed=given["seed"],
        directions=directions,
        parts=parts,
    )
    reference = _reference(subject, given)
    return Ablate(subject, prompts, what, options, targets=targets, reference=reference)


def _check(given: Given) -> None:
    """Refuses options that say nothing together.

    Raises:
        SpecError: naming both.
    """
    whats = [name for name in ("sites", "direction", "components") if given[name] is not None]
    heads = [name for name in ("heads", "values") if given[name] is not None]
    if len(whats) > 1 or (whats and heads):
        both = [*whats, *heads][:2]
        raise SpecError(f"--{both[0]} and --{both[1]} are two ablations; run one at a time")
    if given["layers"] is not None and not (whats or given["values"] is not None):
        raise SpecError("--layers goes with --values, --sites or --direction; heads have their own")
    if given["layers"] is not None and given["components"] is not None:
        raise SpecError("--components names its layers already; drop --layers")
    if given["components"] is not None and given["method"] in ("mean", "resample"):
        raise SpecError("components are taken out or scaled; drop --method, or use --method scale")
    if given["layers"] is not None and given["heads"] is not None:
        raise SpecError("--heads names its layers already; drop --layers")
    if given["factors"] is not None and given["method"] != "scale":
        raise SpecError("--factors goes with --method scale; add it, or drop --factors")
    if given["reference"] and given["method"] not in ("mean", "resample"):
        raise SpecError("--reference goes with --method mean or resample")
    if given["direction"] is not None and given["method"] != "zero":
        raise SpecError("a direction is projected out; drop --method")
    if given["test"] == "joint" and ({*whats} - {"components"} or given["values"] is not None):
        raise SpecError(_NAMED_HEADS.format("joint"))
    is_offset = given["values"] not in (None, "all") and given["positions"] in (None, "all")
    if is_offset and given["method"] in ("mean", "resample"):
        raise SpecError(
            f"--method {given['method']} of values before every query is no single run; name "
            "--positions"
        )
    if given["test"] in POSITION_TESTS:
        _check_positions(given)


def _check_positions(given: Given) -> None:
    is_about_components = given["test"] == "redundancy" and given["components"] is not None
    if given["heads"] in (None, "each") and not is_about_components:
        raise SpecError(_NAMED_HEADS.format(given["test"]))
    others = ("components",) * (not is_about_components)
    for name in ("values", "sites", "direction", *others):
        if given[name] is not None:
            raise SpecError(f"--{name} does not go with --test {given['test']}; drop it")
    if given["method"] != "zero":
        raise SpecError(f"--test {given['test']} sets to zero; drop --method")
    if given["strings"] or given["token_ids"]:
        raise SpecError(f"--test {given['test']} measures no strings; drop --tokens")


def _listed(given: Given, sizes: Sizes) -> list[Head]:
    """Heads by name or from a table."""
    text = given["heads"].strip()
    if is_source(text):
        return ablation.checked(read_heads(text, given["top"] or TOP), sizes)
    if text.isalpha():
        shown, words = safe_text(text, limit=40), ("each", "induction")
        hint = did_you_mean(text, words) or "; write them as L5H8,L6H1 (layer 5, head 8)"
        raise SpecError(f"--heads '{shown}' names no heads{hint}")
    return ablation.named_heads(text, sizes)


def _ablations(given: Given, sizes: Sizes) -> list[Ablation]:
    heads, is_joint = given["heads"], given["test"] == "joint"
    if given["sites"] is not None:
        sites = ablation.parse_sites(given["sites"])
        return ablation.outputs(sites, ablation.chosen_layers(given["layers"], sizes.n_layers))
    if given["values"] is not None:
        return _values(given, sizes)
    if heads == "induction":
        return (ablation.growing_circuit if is_joint else ablation.circuit)(given["top"] or TOP)
    if heads in (None, "each"):
        if is_joint:
            raise SpecError(_NAMED_HEADS.format("joint"))
        return ablation.each_head(sizes)
    named = _listed(given, sizes)
    return ablation.growing(named) if is_joint else ablation.each_and_all(named)


def _values(given: Given, sizes: Sizes) -> list[Ablation]:
    offsets, heads = ablation.parse_offsets(given["values"]), given["heads"]
    if heads == "induction":
        raise SpecError("--values goes with heads by name, each, or --layers; not with induction")
    if heads is None:
        layers = ablation.chosen_layers(given["layers"], sizes.n_layers)
        return ablation.values(offsets, None, layers)
    if heads == "each":
        pairs = [(i, h) for i in range(sizes.n_layers) for h in range(sizes.n_kv_heads)]
        return [one for at in pairs for one in ablation.values(offsets, [at], ())]
    return ablation.values(offsets, ablation.kv_heads(_listed(given, sizes), sizes), ())


def _direction(subject: Subject, given: Given) -> tuple[list[Ablation], dict[int, Any]]:
    """The ablation of a direction, and the direction of each layer.

    Without ``--layers`` a vector of one layer is taken out after all layers, one of several after
    each of its layers as it is there.
    """
    from mlxroles import vectors

    text, sizes = given["direction"], {"n_layers": subject.n_layers}
    sizes["d_model"] = stream_width(subject)
    if given["layers"] is not None:
        layers = ablation.chosen_layers(given["layers"], subject.n_layers)
        read = {layer: vectors.read(text, layer=layer, **sizes) for layer in layers}
        name = read[layers[0]].single
        subject.note_origin(text, read[layers[0]].model)
        directions = {layer: found.unit(name, layer) for layer, found in read.items()}
        return [ablation.direction(name, layers)], directions
    try:
        found = vectors.read(text, **sizes)
    except VectorError as error:
        if "does not say its layer" not in str(error):
            raise
        raise VectorError(f"{error} with --layers, or --layers all for everywhere") from error
    name = found.single
    subject.note_origin(text, found.model)
    own = found.layers_of(name)
    layers = tuple(range(subject.n_layers)) if len(own) == 1 else own
    directions = {n: found.unit(name, own[0] if len(own) == 1 else n) for n in layers}
    return [ablation.direction(name, layers)], directions


def _parts(subject: Subject, given: Given) -> Any:
    """The components that are named, with a note where random ones are of another size."""
    from mlxroles.studies.ablate.parts import Parts

    parts = Parts.of(given["components"], given["top"] or TOP)
    subject.notes += [parts.note] if parts.note and given["random"] else []
    return parts


def _prompts(subject: Subject, given: Given, what: Sequence[Ablation]) -> tuple[Any, Any]:
    """The prompts as ids, and what is measured after them or None."""
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.ablate.prompts import repeats
    from mlxroles.studies.inputs import DEFAULT_PROMPT, encoded, several_tokens, targets_for

    chosen = chosen_prompts(dict(given))
    about = ("heads", "values", "components")
    is_about_heads = all(one.kind in about for one in what)
    wanted = given["strings"] or given["token_ids"]
    if not chosen and is_about_heads and not wanted:
        return repeats(subject, seed=given["seed"]), None
    chosen = chosen or load_prompts(DEFAULT_PROMPT)
    prompts = encoded(subject, chosen, note=subject.notes.append)
    if not wanted and not any(prompt.strings for prompt in chosen):
        return prompts, None
    targets = targets_for(subject, chosen, given["strings"], given["token_ids"])
    subject.notes += several_tokens(targets)
    return prompts, targets


def _reference(subject: Subject, given: Given) -> Any:
    if not given["reference"]:
        return ()
    from mlxroles.studies.inputs import encoded

    chosen = chosen_prompts({"prompts": given["reference"], "prompt_ids": ()})
    return encoded(subject, chosen, note=subject.notes.append)


def _at_positions(subject: Subject, given: Given, sizes: Sizes) -> Any:
    """A test at single positions."""
    from mlxroles.studies.ablate.position_tests import planned as at_positions

    parts = None if given["components"] is None else _parts(subject, given)
    return at_positions(
        given["test"],
        subject,
        chosen_prompts(dict(given)) or None,
        () if parts is not None else _some_heads(subject, given, sizes),
        positions=_positions(given["positions"]),
        n_random=given["random"],
        seed=given["seed"],
        parts=parts,
    )


def _some_heads(subject: Subject, given: Given, sizes: Sizes) -> list[Head]:
    """Heads by name, from a table, or the best of the induction circuit, by pairs.

    They are found in the first model of a pair and are the same in the other, so that one
    question is asked of both.

    Raises:
        SpecError: they are to be found without loading a model.
        ModelError: there are none.
    """
    if given["heads"].strip() != "induction":
        return _listed(given, sizes)
    if given["dry_run"]:
        raise SpecError(
            "--heads induction is found by running the model, which a dry run does not do here; "
            "name heads as L5H8,L6H1"
        )
    from mlxroles.studies.ablate.found_heads import best_pairs

    side = next(iter(subject.sides))
    found = best_pairs(subject, side, given["top"] or 1, seed=given["seed"])
    where = f" by their scores in {side}" if len(subject.sides) > 1 else " by their scores"
    subject.notes.append(f"heads found{where}: {', '.join(head_name(*at) for at in found)}")
    return found


def _positions(text: str | None) -> tuple[int, ...] | None:
    """Positions t; ``last`` and negative numbers count from the end.

    Raises:
        SpecError: they cannot be read.
    """
    if text is None or text == "all":
        return None
    if text == "last":
        return (-1,)
    from mlxroles.plan import parse_positions

    return parse_positions(text, 1_000_000).positions
