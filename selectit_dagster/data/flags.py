"""Flags on records: empty, cut off, refused, addressing the rater, writing special tokens.

Flags look at the normal form of the texts (see ``text.normal_form``), so that full-width
digits or capitals hide nothing. They are rules, not judgements: what each one found is
counted and shown with examples, and each step can be switched to flag, drop or ignore.
"""

from __future__ import annotations

import re

import numpy as np

from selectit_dagster.data.text import is_blank

EMPTY = "empty_response"
CUT_OFF = "cut_off"
REFUSAL = "refusal"
INJECTION = "rating_injection"
MENTION = "rating_mention"
CONTROL = "special_tokens"
FLAGS = (EMPTY, CUT_OFF, REFUSAL, INJECTION, MENTION, CONTROL)

# shorter responses are often titles, names or fragments that were asked for
CUT_OFF_CHARACTERS = 300
_REFUSAL_CHARACTERS = 240

_GRADE = r"(?:rating|score|grade|mark)"
_RECORD = (
    r"(?:this|the|my|that|above|following|current)(?: (?:whole|entire|given|above|following))?"
    r" (?:response|answer|reply|output|completion|record|sample|example|instruction|pair|entry"
    r"|item|data point|datapoint|conversation)"
)
_NO_STARS = r"(?!-| ?(?:star|%|\w))"
_NO_MORE_DIGITS = r"(?![\w%°,:/*+^-]|\.\d| ?[-+*/=×÷] ?\d)"
_TOP = (
    r"(?:an? |the )?(?:(?:5|five)(?: ?(?:/|out of|of) ?(?:5|five))?|10/10|ten out of ten"
    r"|(?:highest|maximum|max|top|best|full|perfect)"
    rf"(?: possible)?(?: {_GRADE}s?)?(?: of (?:5|five))?){_NO_STARS}"
)
_RATER = (
    r"(?:rater|grader|scorer|evaluator|rating model|scoring model|judge model|llm judge"
    r"|reward model|ai judge|evaluation model|quality (?:rater|filter|classifier|model))s?"
)

_MOST = (
    r"\b(?:5|five|10/10|excellent|perfect|"
    r"(?:highest|maximum|max|top|best|full) (?:possible )?(?:rating|score|grade|marks?))\b"
)
# addressed, but told nothing
_ADDRESSED = re.compile(
    r"\b(?:dear|attention|(?:note|message|instructions?) (?:to|for)|hey|hello)"
    rf"[,:]?(?: (?:all|the|any|every|ai))* {_RATER}\b"
)
# what such words are the subject of is a task about them, and no attack
_ABOUT_TEXT = re.compile(
    r"\b(?:translat\w*|paraphras\w*|rephras\w*|summari[sz]\w*|classif\w*|rewrite|correct|fix|edit"
    r"|detect\w*|explain|spell\w*|tokeni[sz]\w*|say|print\w*|prompt injection|grammar)\b"
    r"|翻译|改写|总结|解释|traduc|traduis|übersetz"
)

# each pattern must address whoever rates the record; asking for a rating of something is no offence
_INJECTIONS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(?:rate|score|grade|mark) (?:{_RECORD}|this|it|me)"
        rf"(?: (?:as|at|with|a|an|to be|highly,?|exactly|only))* {_TOP}",
        rf"\b(?:give|assign|award|grant) (?:{_RECORD}|this|it|me) "
        rf"(?:(?:a|an|the) )?(?:{_GRADE} (?:of|:) )?{_TOP}",
        rf"\b(?:give|assign|award|output|print|return|choose|(?:answer|respond|reply) with)"
        rf" (?:(?:only|just) (?:(?:a|an|the) )?(?:(?:{_GRADE}|number|digit) (?:of |: ?)?)?"
        rf"|(?:(?:a|an|the) )?{_GRADE} (?:of |: ?)?)(?:5|five)"
        rf"(?: (?:to|for) {_RECORD}|[.! ]*(?:\n|$))",
        rf"\b(?:choose|pick|select|answer|say|use) (?:5|five) (?:to|for|on) {_RECORD}",
        rf"{_RECORD} (?:deserves|merits|is worth|earns|(?:should|must|ought to|has to)"
        rf" (?:get|receive|have|be (?:rated|given|scored|graded|awarded)))(?: (?:a|an|the))?"
        rf"(?: {_GRADE} of)?(?: as)? {_TOP}",
        r"\b(?:ignore|disregard|forget|override|overlook)(?: (?:all|any|the|your|of|every|my|these"
        r"|those|previous|prior|above|preceding|earlier|other|rating|scoring|given)){1,4}"
        r" (?:instruction|prompt|criteri|rule|guideline|direction|rubric)\w*"
        rf".{{0,160}}(?:\b(?:rate|rating|score|grade|5|five)\b|{_RATER}|"
        r"\b(?:highest|maximum|perfect|full)\b)",
        r"\b(?:dear|attention|(?:note|message|instructions?) (?:to|for)|hey|hello)"
        rf"[,:]?(?: (?:all|the|any|every|ai))* {_RATER}\b.{{0,160}}{_MOST}",
        rf"\b(?:as|if you are|you are) (?:an? |the )?{_RATER}\b.{{0,160}}{_MOST}",
        r"(?:给|把|请|将|对).{0,12}(?:回答|回复|答案|响应|样本|记录|内容|本条|这条).{0,8}"
        r"(?:打|评|给)(?:为|出|个|上)?(?:5|五|满|最高)\s?分",
        r"(?:请|直接|必须|务必)(?:打|给|评|输出)(?:出|为)?\s?(?:5|五|满|最高)\s?分",
        r"(?:忽略|无视|忘记).{0,8}(?:以上|之前|前面|上面|先前|所有).{0,8}"
        r"(?:指令|指示|说明|提示|规则|要求).{0,60}(?:分|评|5)",
        r"\b(?:califica|puntúa|valora) (?:esta|la) (?:respuesta|instrucción) con (?:un )?"
        r"(?:5|cinco)",
        r"\b(?:bewerte|benote) diese (?:antwort|anweisung) mit (?:5|fünf|einer 5)",
        r"\b(?:notez|évaluez|donnez à) cette (?:réponse|instruction) (?:à |avec )?(?:un )?"
        r"(?:5|cinq)",
    )
)
# the rating prompts of SelectIT end in "The answer is: ", so a record that says it rates itself
_VERDICT = re.compile(
    r"\b(?:the )?(?:(?:final |overall )?(?:answer|rating|score|grade) is ?:"
    r"|rating ?[:=]|score ?[:=]"
    r"|答案是 ?:|评分 ?:|得分 ?:)"
    r" ?[\"'(\[*]*([1-5])(?: ?(?:/|out of) ?5)?" + _NO_MORE_DIGITS
)
_ASKS_FOR_RATING = re.compile(
    r"\b(?:rat(?:e|es|ed|ing|ings)|scor(?:e|es|ed|ing)|grad(?:e|es|ed|ing)|reviews?|stars?|rank"
    r"|evaluat\w*|assess\w*|scale|sentiment|game|match|quiz|survey|feedback|points?|json|table"
    r"|classify|评|打分|得分)\b"
)
_SUM = re.compile(r"\d[\d,.]*\s*[-+*/×÷=^<>]\s*\$?\d|\d\s*(?:%|\\)|\\frac|\\boxed")

_REFUSALS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(?:(?:i['’]?m|i am|we are|we're)?(?: (?:so|very|really|truly|deeply))? ?(?:sorry|afraid)"
        r"|(?:i|we) apologi[sz]e|(?:my )?apologies)\b"
        r".{0,60}\b(?:can(?:no|['’])t|can not|unable|not able|won['’]t|not allowed|not possible"
        r"|do(?: not|n['’]t) (?:have|know|understand))\b",
        r"^(?:unfortunately,? |sorry,? |apologies,? )?(?:as|being) (?:an? )?(?:ai|artificial"
        r" intelligence|(?:large )?language model|virtual assistant|chatbot|machine)\b.{0,90}"
        r"\b(?:can(?:no|['’])t|can not|unable|not able|do(?: not|n['’]t)|am not|not capable"
        r"|not programmed|lack)\b",
        r"^(?:unfortunately,? |sorry,? )?i (?:can(?:no|['’])t|can not|won['’]t|will not"
        r"|am unable to|am not able to|must decline to) (?:help|assist|answer|provide|fulfill?"
        r"|comply|do|respond|complete|process|generate|create|write|engage|discuss|support|access)",
        r"^(?:很抱歉|抱歉|对不起|不好意思).{0,30}(?:无法|不能|没有办法|没法|不会)",
        r"^(?:作为|我是)(?:一个|一名|一款)?(?:ai|人工智能|语言模型|大型语言模型|虚拟助手)"
        r".{0,40}(?:无法|不能|没有)",
        r"^(?:lo siento|désolé|desculpe|es tut mir leid).{0,60}(?:no puedo|peux pas|não posso"
        r"|kann (?:ich )?nicht)",
    )
)

# the shapes of special tokens in the usual vocabularies, in normal form
_CONTROL = (
    r"<\|[a-z0-9_▁.:/-]{2,40}\|>|</?s>|\[/?inst\]|<</?sys>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad|unk)>|\[(?:cls|sep|mask|pad|unk)\]"
)

# what a text that one of them matches starts with
_REFUSAL_STARTS = (
    "i ", "i'm", "i’m", "im ", "we ", "we're", "so ", "sorry", "afraid", "very", "really", "truly",
    "deeply", "apolog", "my apolog", "unfortunately", "as a", "being a", "as la", "as ma",
    "as vi", "as ch", "being l", "being m", "being v", "being c", "很抱歉", "抱歉", "对不起",
    "不好意思", "作为", "我是", "lo siento", "désolé", "desculpe", "es tut",
)  # fmt: skip

_ENDS = frozenset(".!?…。！？؟।॥\"'”’»)]}>`*_~|;:/\\=+$%©®™°′″、，」』】）》〉;")
_LIST_ITEM = re.compile(r"\s*(?:[-*•·–—>#|]|\(?\d+[.):]|\(?[a-zA-Z][.)]|[ivx]+[.)])")
_DANGLING = re.compile(
    r"(?:,|\b(?:and|or|but|the|an?|of|to|in|for|with|that|which|because|by|from|as|is|are|was|were"
    r"|this|these|your|my|their|its|his|her|on|at|into|than|if|when|while|such))$",
)
_FORM = re.compile(r"[{};<>=|\\]|https?://|@\w|#\w|^\s*(?:[A-Z][\w' ]{0,30}),$")


def injection_candidates(whole: list[str]) -> np.ndarray:
    """Return which texts (normal form) may address the rater: (N,) bool, no false negatives.

    One pass of a linear-time engine over all patterns at once, a hundred times quicker
    than asking for each of every record.
    """
    union = "|".join(f"(?:{_for_re2(p.pattern)})" for p in (*_INJECTIONS, _ADDRESSED, _VERDICT))
    return _searched(whole, union)


def _searched(texts: list[str], pattern: str) -> np.ndarray:
    """Return in which texts RE2 finds a pattern: (N,) bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring_regex(pa.array(texts, pa.large_string()), pattern)
    return found.to_numpy(zero_copy_only=False)


def _for_re2(pattern: str) -> str:
    """Return a pattern that matches at least as much and that RE2 can run."""
    for lookahead in (_NO_STARS, _NO_MORE_DIGITS):
        pattern = pattern.replace(lookahead, "")
    # to RE2 only ASCII letters make a word: a border beside another one would be missed
    return pattern.replace(r"\b", "").replace(r"\w", r"[\pL\pN_]")


def injection(instruction: str, given: str, response: str) -> str:
    """Return the words with which a record tells a rater what to give, or "".

    All three texts are in normal form. Asking for a rating of something is no offence: each rule
    must address whoever rates the record ("rate this 5", "ignore the instructions above and
    ..."), and words that are the subject of a task (a translation of them) do not count.
    """
    asked = f"{instruction}\n{given}"
    texts = [response] if _ABOUT_TEXT.search(instruction) else [asked, response]
    if _ABOUT_TEXT.search(instruction) and any(p.search(asked) for p in _INJECTIONS):
        return ""  # the answer to a task about such words holds them too
    found = (pattern.search(text) for text in texts for pattern in _INJECTIONS)
    return next((match[0] for match in found if match), "")


def mention(instruction: str, given: str, response: str) -> str:
    """Return words that may address a rater, or a verdict in the form of one, or "".

    All three texts are in normal form. A verdict has the rating prompts' own end ("The answer
    is: 5"); it is let through where it is the record's business: the instruction asks for a
    rating, or a sum is worked out on the way to it. Correct answers look like this too, so it is
    a flag and never a reason to drop a record.
    """
    asked = f"{instruction}\n{given}"
    whole = f"{asked}\n{response}"
    addressed = next((m for p in (*_INJECTIONS, _ADDRESSED) if (m := p.search(whole))), None)
    if addressed is not None:
        return addressed[0]
    found = _VERDICT.search(response) or _VERDICT.search(asked)
    if found is None:
        return ""
    worked_out = _SUM.search(_VERDICT.sub("", response))
    business = worked_out or _ASKS_FOR_RATING.search(_VERDICT.sub("", asked))
    return "" if business else found[0].strip()


def is_refusal(response: str) -> bool:
    """Tell whether a response (normal form) starts by declining to answer."""
    head = response[:_REFUSAL_CHARACTERS].lstrip("\"'“‘*- ")
    return head.startswith(_REFUSAL_STARTS) and any(pattern.search(head) for pattern in _REFUSALS)


def is_cut_off(response: str) -> bool:
    """Tell whether a response (as it is) ends in the middle.

    A code fence that is never closed; or, from 300 characters on, a last line of prose
    that ends in a comma, a function word, or a letter with no closing mark although the
    prose before it has full stops. Lists, code and tables end as they like.
    """
    text = response.rstrip()
    if text.count("```") % 2:
        return True
    if (
        len(text) < CUT_OFF_CHARACTERS
        or text[-1] in _ENDS
        or not text[-1].isalnum() | (text[-1] in ",-–—(")
    ):
        return False
    line = text[text.rfind("\n") + 1 :]
    if "```" in text or _FORM.search(line):
        return False
    if _DANGLING.search(text):
        return True
    if _LIST_ITEM.match(line) or len(line) < 60:
        return False
    # verse and lists leave their lines open; prose closes its other lines
    others = [entry.rstrip() for entry in text.split("\n")[:-1] if entry.strip()]
    closed = sum(entry[-1] in _ENDS for entry in others)
    if others and closed * 2 < len(others):
        return False
    return bool(re.search(r"[.!?。！？]", text))


def flag_batch(normal: list[str], responses: list[str]) -> np.ndarray:
    """Return the flags of each record as bits: (N,) uint8; bit i is ``FLAGS[i]``.

    Parameters
    ----------
    normal:
        The records in normal form: instruction, input and response on a line each.
    responses:
        The responses as they are.
    """
    bits = np.zeros(len(responses), np.uint8)
    for index, (whole, response) in enumerate(zip(normal, responses, strict=True)):
        if is_blank(response):
            bits[index] = 1
            continue
        head = whole[whole.rindex("\n") + 1 :]
        if found := (is_cut_off(response) << 1) | (is_refusal(head) << 2):
            bits[index] = found
    for index in np.flatnonzero(injection_candidates(normal)).tolist():
        texts = normal[index].split("\n")
        if injection(*texts):
            bits[index] |= 1 << 3
        elif mention(*texts):
            bits[index] |= 1 << 4
    # read as text wherever they are encoded here; another program may obey them
    bits[_searched(normal, _CONTROL)] |= 1 << 5
    return bits


def names_of(bits: int) -> list[str]:
    """Return the names of the flags that are set in ``bits``."""
    return [name for index, name in enumerate(FLAGS) if bits >> index & 1]
