"""Chat templates by name, the system turn, and the renderings that preference data needs."""

from __future__ import annotations

from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from reproalign.common.data.records import Message
from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.files import read_text

SPEAKERS = {"user": "Human", "assistant": "Assistant"}  # of a transcript
MAX_MODEL_LENGTH = 2048  # given to tokenizers that claim an absurd one, as the alignment-handbook does
TURN_MARKS = {"transcript": "\n\n", "lmflow": "###"}  # layout of a transcript: what stands before a speaker's name
SEPARATORS = {"space": " ", "none": ""}  # what stands between the header of the last answer and its text

_CHATML_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
)
_CHATML_HEADER = "{{ '<|im_start|>assistant\\n' }}"

TEMPLATES = {
    # Per turn "<|role|>\n content eos \n"; other roles than the three render nothing.
    "zephyr": (
        "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}"
        "{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
    ),
    # ContextualAI's HALOs: the newline opens a turn instead of closing it.
    "halos": (
        "{% for m in messages %}{{ '\\n<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n' }}" + _CHATML_HEADER + "{% endif %}"
    ),
    # As Ra-DPO's release renders its copy: an answer is asked for with one line break more than stands before one.
    "halos_released": (
        "{% for m in messages %}{{ '\\n<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n' }}" + _CHATML_HEADER + "{{ '\\n' }}{% endif %}"
    ),
    # No marks at all: for a model that goes on with a text.
    "text": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "chatml": _CHATML_TURNS + "{% if add_generation_prompt %}" + _CHATML_HEADER + "{% endif %}",
    # BOS opens a list that begins with a system or user turn; EOS closes one that ends with an assistant turn.
    "gemma_chatml": (
        "{% if messages and messages[0]['role'] in ['system', 'user'] %}{{ bos_token }}{% endif %}"
        + _CHATML_TURNS
        + "{% if add_generation_prompt %}"
        + _CHATML_HEADER
        + "{% elif messages and messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    ),
    # FastChat's template of MMPO's authors: the header of a system turn that is neither filled nor closed.
    "gemma_custom": (
        "{{ bos_token + '<|im_start|>system\\n' }}"
        + _CHATML_TURNS
        + "{% if add_generation_prompt %}"
        + _CHATML_HEADER
        + "{% endif %}"
    ),
    "llama3": (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None) -> None:
    """Set a tokenizer up for preference data: pad token (EOS if it has none), length, chat template.

    Raises:
        UserError: if it has no EOS token, or no chat template and none is given.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set one in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.model_max_length > 100_000:
        tokenizer.model_max_length = MAX_MODEL_LENGTH
    set_template(tokenizer, chat_template)


def set_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Give the tokenizer the template that ``template`` names (a name here, or a file); None keeps its own.

    Raises:
        UserError: for an unknown name, or a tokenizer that has none when none is given.
    """
    if template is None:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; set model.chat_template to one of "
                f"{', '.join(TEMPLATES)} or to a Jinja file"
            )
    elif template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[template]
    elif Path(template).is_file():
        tokenizer.chat_template = read_text(Path(template), "model.chat_template=")
    else:
        raise UserError(
            f"model.chat_template={template}: no such template{did_you_mean(template, TEMPLATES)} and no such file; "
            f"there are {', '.join(TEMPLATES)}"
        )


def knows_system(template: str) -> bool:
    """Say whether a template speaks of system turns, by the alignment-handbook's test on its text."""
    return "system" in template or "<|im_start|>" in template


def with_system(dialogue: list[Message], system: str | None, template: str) -> list[Message]:
    """Return ``dialogue`` with a system turn in front, if it has none and should have one.

    Args:
        dialogue: left as it is.
        system: None: add none; ``auto``: an empty one where the template knows system turns; other text: that text.
        template: the template's text.
    """
    if system is None or (dialogue and dialogue[0]["role"] == "system"):
        return dialogue
    if system == "auto":
        return [{"role": "system", "content": ""}, *dialogue] if knows_system(template) else dialogue
    return [{"role": "system", "content": system}, *dialogue]


def render(tokenizer: PreTrainedTokenizerBase, dialogue: list[Message], *, generation: bool = False) -> str:
    """Render a dialogue as text; an empty one renders as an empty string.

    Raises:
        UserError: if the template refuses the dialogue.
    """
    if not dialogue:
        return ""
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=generation)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in dialogue)
        raise UserError(
            f"the chat template of '{tokenizer.name_or_path}' refuses turns of {roles} ({error}); "
            "set text.system_message=null or another model.chat_template"
        ) from error
    return str(text)


def transcript(dialogue: list[Message], layout: str = "transcript", response_separator: str = "space") -> str:
    r"""Render a dialogue as ``\n\nHuman: …\n\nAssistant: …``, in LMFlow's form as ``###Human: …###Assistant: …``.

    Args:
        dialogue: turns of user and assistant.
        layout: one of :data:`TURN_MARKS`.
        response_separator: ``space`` or ``none``: what is between the header of the last turn, if it is the
            assistant's, and its text. A text put together from a prompt and what was sampled for it has none.

    Raises:
        UserError: for a turn of another role than user and assistant.
    """
    for turn in dialogue:
        if turn["role"] not in SPEAKERS:
            raise UserError(
                f"layout={layout} has turns of {' and '.join(SPEAKERS)} alone, not of '{turn['role']}'; set "
                "layout=chat, or leave such turns out"
            )
    texts = [f"{turn_header(turn['role'], layout)} {turn['content']}" for turn in dialogue]
    if dialogue and dialogue[-1]["role"] == "assistant":
        texts[-1] = f"{turn_header('assistant', layout)}{SEPARATORS[response_separator]}{dialogue[-1]['content']}"
    return "".join(texts)


def turn_header(role: str, layout: str) -> str:
    r"""Return what opens a turn of a transcript: ``"\n\nHuman:"``, ``"###Assistant:"``."""
    return f"{TURN_MARKS[layout]}{SPEAKERS[role]}:"


def check_separator(layout: str, response_separator: str) -> None:
    """Refuse a separator that a chat template has no place for.

    Raises:
        UserError: naming the key.
    """
    if layout not in TURN_MARKS and response_separator != "space":
        raise UserError(
            f"response_separator={response_separator} is for {' and '.join(f'layout={name}' for name in TURN_MARKS)}, "
            f"not for layout={layout}, where the chat template decides; leave it out"
        )


def render_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    completion: list[Message],
    *,
    alone: bool,
    generation: bool = False,
) -> str:
    """Render a completion.

    Args:
        tokenizer: gives the template.
        prompt: the turns before it, system turn included.
        completion: the turns of the completion.
        alone: render it on its own (the released rule). A template may then put BOS or a default system turn into it;
            otherwise it is what the whole dialogue has beyond the prompt.
        generation: the prompt ends with the header of the assistant's turn.

    Raises:
        UserError: if the rendered prompt is no prefix of the rendered dialogue.
    """
    if alone:
        return render(tokenizer, completion)
    head, whole = render(tokenizer, prompt, generation=generation), render(tokenizer, prompt + completion)
    if not whole.startswith(head):
        raise UserError(
            f"the chat template of '{tokenizer.name_or_path}' renders a prompt differently once an answer follows, so "
            "prompt and answer cannot be told apart; set another model.chat_template"
        )
    return whole[len(head) :]
