"""Golden prompts: what the checkpoints were trained on, character by character."""

import pytest
from PIL import Image

import llava.conversation
from llava.conversation import Conversation, SeparatorStyle, conv_templates, conversation_mode

USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VISUAL = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
MMTAG = (
    f"A chat between a curious user and an artificial intelligence assistant. The assistant is {VISUAL}"
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
LLAVA_LLAMA_2 = f"You are a helpful language and vision assistant. You are {VISUAL}"
MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)


def talk(name: str, *messages) -> str:
    conversation = conv_templates[name].copy()
    for i, message in enumerate(messages):
        conversation.append_message(conversation.roles[i % 2], message)
    return conversation.get_prompt()


@pytest.mark.parametrize(
    ("name", "open_prompt", "two_rounds"),
    [
        ("vicuna_v1", f"{USER} USER: q ASSISTANT:", f"{USER} USER: q ASSISTANT: a</s>USER: r ASSISTANT: b</s>"),
        ("v1", f"{USER} USER: q ASSISTANT:", f"{USER} USER: q ASSISTANT: a</s>USER: r ASSISTANT: b</s>"),
        ("llava_v1", f"{HUMAN} USER: q ASSISTANT:", f"{HUMAN} USER: q ASSISTANT: a</s>USER: r ASSISTANT: b</s>"),
        ("v1_mmtag", f"{MMTAG} USER: q ASSISTANT:", f"{MMTAG} USER: q ASSISTANT: a</s>USER: r ASSISTANT: b</s>"),
        (
            "llava_v0",
            f"{HUMAN}###Human: q###Assistant:",
            f"{HUMAN}###Human: q###Assistant: a###Human: r###Assistant: b###",
        ),
        (
            "v0_mmtag",
            f"{MMTAG}###Human: q###Assistant:",
            f"{MMTAG}###Human: q###Assistant: a###Human: r###Assistant: b###",
        ),
        (
            "llava_llama_2",
            f"[INST] <<SYS>>\n{LLAVA_LLAMA_2}\n<</SYS>>\n\nq [/INST]",
            f"[INST] <<SYS>>\n{LLAVA_LLAMA_2}\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST] b </s>",
        ),
        ("mistral_instruct", "[INST] q [/INST]", "[INST] q [/INST] a </s>[INST] r [/INST] b </s>"),
        (
            "chatml_direct",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\n",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\na"
            "<|im_end|><|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
        ),
        (
            "mpt",
            f"{MPT}<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\n",
            f"{MPT}<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\na<|im_end|>"
            "<|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
        ),
        ("plain", "q\n", "q\nar\nb"),
    ],
)
def test_prompts(name, open_prompt, two_rounds):
    assert talk(name, "q", None) == open_prompt
    assert talk(name, "q", "a", "r", "b") == two_rounds


def test_llama_2_carries_metas_system_prompt_with_llavas_second_space():
    from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

    expected = DEFAULT_SYSTEM_PROMPT.replace("while being safe. ", "while being safe.  ")
    assert talk("llama_2", "q", None) == f"[INST] <<SYS>>\n{expected}\n<</SYS>>\n\nq [/INST]"


def test_v0_begins_with_its_worked_example():
    conversation = conv_templates["v0"]
    assert conversation.offset == 2
    assert [role for role, _ in conversation.messages] == ["Human", "Assistant"]
    prompt = talk("v0", "q", None)
    assert prompt.startswith(
        f"{HUMAN}###Human: What are the key differences between renewable and non-renewable energy"
    )
    assert prompt.endswith("economic and social instability.\n###Human: q###Assistant:")


def test_names_versions_and_default():
    assert llava.conversation.default_conversation is conv_templates["vicuna_v1"]
    versions = {name: conversation.version for name, conversation in conv_templates.items()}
    assert versions["plain"] == versions["llava_v0"] == versions["v0"] == "Unknown"
    assert versions["v1"] == versions["llava_v1"] == "v1"
    assert versions["llama_2"] == versions["mistral_instruct"] == "llama_v2"
    assert versions["chatml_direct"] == versions["mpt"] == "mpt"
    assert conv_templates["mistral_direct"] is conv_templates["chatml_direct"]
    assert conv_templates["plain"].sep_style is SeparatorStyle.PLAIN


def test_a_leading_picture_becomes_a_placeholder():
    picture = Image.new("RGB", (40, 20))
    assert talk("llava_v1", ("what <image>", picture, "Pad"), None) == f"{HUMAN} USER: <image>\nwhat ASSISTANT:"
    tagged = f"{MMTAG} USER: <Image><image></Image> ASSISTANT: Received.</s>USER: what ASSISTANT:"
    assert talk("v1_mmtag", ("what <image>", picture, "Pad"), None) == tagged


def test_pictures_are_padded_resized_and_shrunk():
    conversation = conv_templates["llava_v1"].copy()
    wide = Image.new("RGB", (3000, 1000), "red")
    for mode, size in [("Pad", (672, 672)), ("Default", (1344, 448)), ("Crop", (1344, 448)), ("Resize", (336, 336))]:
        assert conversation.process_image(wide, mode, return_pil=True).size == size
    padded = conversation.process_image(Image.new("RGB", (40, 20)), "Pad", return_pil=True)
    assert padded.getpixel((0, 0)) == (122, 116, 104)
    with pytest.raises(ValueError, match="Invalid image_process_mode"):
        conversation.process_image(wide, "Stretch")
    conversation.append_message("USER", ("q", wide, "Resize"))
    assert [image.size for image in conversation.get_images(return_pil=True)] == [(336, 336)]
    assert conversation.to_gradio_chatbot()[0][0].startswith('<img src="data:image/jpeg;base64,')
    assert conversation.dict()["messages"] == [["USER", "q"]]


def test_a_copy_has_messages_of_its_own():
    original = Conversation("s", ("U", "A"), [["U", "q"]], 0, skip_next=True)
    copy = original.copy()
    copy.append_message("A", "a")
    copy.messages[0][1] = "changed"
    assert original.messages == [["U", "q"]]
    assert not copy.skip_next


def test_llama_2_needs_a_first_question():
    with pytest.raises(ValueError, match="first message"):
        talk("mistral_instruct", None)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("llava-llama-2-7b", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("LLaVA-v1.6-34B", "chatml_direct"),
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("anything", "llava_v0"),
    ],
)
def test_mode_from_the_name(name, mode):
    assert conversation_mode(name) == mode


def test_mode_prefers_what_was_said():
    assert conversation_mode("llava-v1.5-7b", conv_version="plain") == "plain"
    assert conversation_mode("llava-v1.5-7b", conv_version="plain", explicit="vicuna_v1") == "vicuna_v1"
    with pytest.raises(ValueError, match=r"'nonsense' is unknown.*vicuna_v1"):
        conversation_mode("llava-v1.5-7b", explicit="nonsense")
