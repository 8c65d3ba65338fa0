"Names and values of other years are answered with today's, before any work, on the command line and in Python"
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from clm_nb.arguments import DataArguments, ModelArguments, flag_advice
from clm_nb.training.renamed import check_optimizer, of_data, of_scripts, of_training, optimizers, today
from clm_nb.training.settings import training_settings

real = {f.name for group in (TrainingArguments, DataArguments, ModelArguments) for f in fields(group)}


def test_no_name_of_the_tables_exists():
    assert not (set(of_training) | set(of_scripts)) & real


@pytest.mark.parametrize("name", [*of_training, *of_scripts])
def test_each_answer_names_what_exists(name):
    "Or says to leave it out, or to set an environment variable"
    answer = today(name)
    advised = answer.removeprefix("Use ").split(",")[0].split("=")[0].split()[0].rstrip(".")
    others = {"config_name", "dtype"}  # of a model
    assert advised in real | others or answer.startswith(("Leave it out", "Set the environment variable"))


@pytest.mark.parametrize("name", [*of_training, *of_scripts])
def test_in_python_and_on_the_command_line_the_answer_is_the_same(name):
    with pytest.raises(TypeError) as refused: training_settings(**{name: 1})
    assert str(refused.value) == f"{name}= is no argument of a training. {today(name)}"
    assert today(name).rstrip(".") in flag_advice(f"unrecognized arguments: --{name} 1")


@pytest.mark.parametrize("name", sorted(of_data))
def test_an_argument_of_the_data_is_sent_to_data(name):
    assert name in {f.name for f in fields(DataArguments)}
    with pytest.raises(TypeError, match=rf"finetune takes it in data=dict\({name}=…\)"): training_settings(**{name: 1})


def test_all_that_finetune_takes_in_data_is_known():
    from inspect import signature
    from clm_nb.core import finetune
    own = {*signature(finetune).parameters, "train_file", "validation_file"}
    assert of_data == {f.name for f in fields(DataArguments)} - own


def test_a_name_that_nobody_knows_is_refused_and_one_with_a_slip_is_guessed():
    with pytest.raises(TypeError, match="colour= is no argument .* See the fields"): training_settings(colour=1)
    with pytest.raises(TypeError, match="Do you mean weight_decay"): training_settings(weight_deacy=1)


@pytest.mark.parametrize("given,words", [
    (dict(optim_args="betas=(0.5,0.9)"), "adam_beta1="), (dict(optim_args="momentum"), "name=value"),
    (dict(optim_args="a=1,,b=2"), "name=value"), (dict(optim="adamw_hf"), "adamw_torch"),
    (dict(max_grad_norm=None), "Use 0"), (dict(max_grad_norm="1"), "no number"), (dict(max_grad_norm=True), "no number")])
def test_values_of_other_years(given, words):
    with pytest.raises(ValueError, match=words) as refused: training_settings(**given)
    assert "\n" not in str(refused.value)


def test_what_is_right_goes_through():
    given = dict(optim="sgd", optim_args="momentum=0.9, nesterov=True", max_grad_norm=0, warmup_steps=0.1)
    assert given.items() <= training_settings(**given).items()
    for optim_args in (None, "rank=64, update_proj_gap=100, scale=0.10"): check_optimizer(optim_args)
    assert set(optimizers) == {"adamw_hf"}
