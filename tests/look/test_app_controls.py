"A control has the value that was asked for, or says what it takes; what is read from them is what `generate` takes"
import pytest
from clm_nb.generate import generate
from clm_nb.look.app_controls import allowed_values, app_controls, chosen_settings, mode_controls, set_controls, switch_controls
from tiny import gpt2, tokenizer


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "num_beams"])
def test_a_slider_takes_its_ends_and_refuses_what_is_beyond(name):
    controls = app_controls(longest=99)
    low, high = controls[name].min, controls[name].max
    for value in (low, high):
        set_controls(controls, {name: value})
        assert controls[name].value == value
    for beyond in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name}={beyond} can't be used here. Use {low} to {high}."):
            set_controls(controls, {name: beyond})


@pytest.mark.parametrize("mode", mode_controls)
def test_what_is_read_is_what_generate_takes(mode):
    controls = app_controls(longest=4)
    set_controls(controls, dict(mode=mode))
    switch_controls(controls)
    settings = chosen_settings(controls)
    off = {name for name, control in controls.items() if control.disabled}
    assert not off & set(settings) and off | set(settings) >= {"temperature", "top_k", "top_p", "seed", "num_beams"}
    assert generate(gpt2(), tokenizer(), "The", **settings)


def test_no_room_at_all_is_still_one_token():
    assert app_controls(longest=1)["max_new_tokens"].value == 1
    assert allowed_values(app_controls(longest=1)["mode"]) == "sample, greedy, beam"
