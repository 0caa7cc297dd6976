"""Pictures of what remained of a picture."""

import base64
import io

import numpy as np
from PIL import Image

from flowcut.plots import merged_regions
from llava.serve.kept_pictures import GAP, final_picture, layer_pictures
from llava.serve.session import Session, Wish


def view_of(colour="red", side=28):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def kept(views=1, **more):
    return {
        "views": [view_of()] * views,
        "grid": [2, 2],
        "steps": [],
        "sources": None,
        "others": 0,
        "mixed": False,
        **more,
    }


def patches_of(picture, rows, columns):
    """[rows * columns, ...], the pixels of each patch."""
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(rows * columns, -1, 3)


def test_what_was_dropped_is_veiled_and_the_rest_is_the_picture(controller, files):
    session, wish = Session(), Wish("tiny", 0.0, max_new_tokens=1, method="fastervlm", budget=5)
    session.add("what is in this image", files[0], wish, controller)
    list(session.answer(wish, controller))
    veiled, caption = final_picture(session.kept)
    [(same, layer)] = layer_pictures(session.kept)
    assert (caption, layer) == ("5 of 16 patches", "after encoder layer 0: 5")
    assert np.array_equal(np.asarray(veiled), np.asarray(same))
    whole, said = final_picture({**session.kept, "steps": []})
    assert said == "all 16 patches"
    equal = (patches_of(np.asarray(whole), 4, 4) == patches_of(np.asarray(veiled), 4, 4)).all(axis=(1, 2))
    assert np.flatnonzero(equal).tolist() == session.kept["steps"][0]["kept"][0]


def test_tiles_lie_beside_each_other():
    steps = [{"stage": "language", "layer": 1, "kept": [[0], []]}]
    picture, caption = final_picture(kept(views=2, steps=steps))
    assert caption == "1 of 8 patches"
    assert picture.size == (56 + GAP, 28)
    assert [said for _, said in layer_pictures(kept(views=2, steps=steps))] == ["after LLM layer 1: 1"]


def test_merged_patches_are_told_apart_from_kept_ones():
    steps = [{"stage": "encoder", "layer": 3, "kept": [[0, 3]]}]
    _, caption = final_picture(kept(steps=steps, sources=[[0, 0, 1, 1]]))
    assert caption == "4 patches became 2 tokens; patches of one colour are one token"
    _, caption = final_picture(kept(steps=steps, sources=[[0, 0, -1, 2]], others=1))
    assert caption.endswith("one token, pale patches were dropped; other tokens: 1")
    assert layer_pictures(kept(steps=steps, sources=[[0, 0, 1, 1]])) == []
    _, caption = final_picture(kept(steps=steps, mixed=True))
    assert caption.startswith("2 of 4 patches; tokens also contain other patches")


def test_a_token_of_several_patches_has_one_colour_and_its_border():
    picture = np.full((40, 60, 3), 200, dtype=np.uint8)
    sources = np.array([0, 0, 1, 2, -1, 0])
    drawn = patches_of(merged_regions(picture, sources, (2, 3)), 2, 3)
    middle = drawn.reshape(6, 20, 20, 3)[:, 5:15, 5:15].reshape(6, -1, 3)
    assert all((patch == patch[0]).all() for patch in middle)
    first, second, alone, other, dropped, third = (tuple(patch[0].tolist()) for patch in middle)
    assert first == second == third != alone
    assert alone == other == (200, 200, 200)
    assert dropped == (234, 234, 234)
    borders = (merged_regions(picture, sources, (2, 3)) == 40).all(axis=2)
    assert borders[5, 40]  # between the patches 1 and 2
    assert not borders[5, 20]  # between 0 and 1, which are one token
    assert not borders[20, 45] or borders[20, 50]
    assert not borders[25, 20]  # between 3 and 4, of which none is merged
