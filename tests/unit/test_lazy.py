"""Packages whose names are loaded when first used."""

from __future__ import annotations

import json.decoder

import pytest

from jobworker.lazy import attach


def test_name_is_loaded_when_it_is_asked_for_and_kept():
    names: dict[str, object] = {}
    load, _ = attach("json", names, {"JSONDecoder": "decoder"})
    assert not names

    assert load("JSONDecoder") is names["JSONDecoder"] is json.decoder.JSONDecoder


def test_other_names_are_missing():
    load, _ = attach("json", {}, {"JSONDecoder": "decoder"})
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'Nonsense'"):
        load("Nonsense")


def test_names_are_listed_before_they_are_loaded():
    _, list_names = attach("json", {"__doc__": ""}, {"JSONDecoder": "decoder"})
    assert list_names() == ["JSONDecoder", "__doc__"]
