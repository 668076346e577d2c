"""The demonstration's page: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from html import escape
from typing import Final

from ppdl_mq.report.charts import Line, Tick, line_chart
from ppdl_mq.report.result import (
    ALL_HOLDOUTS,
    MASKED,
    SAME_ORDER,
    SHUFFLED,
    Averaged,
    Curve,
    Outcome,
    Result,
    Share,
    TurnLength,
    in_short,
)

# Who can read the weights, by protocol. Source: docs/PROTOCOL.md, section 1.
READERS: Final = {
    "server-aided": "every peer of the trial, in its turn",
    "fully-connected": "the next peer alone, after each turn",
    MASKED: "one organisation's: itself alone; the average of all: every peer, after each round",
}
_TWO: Final = "one organisation's: the other too, which can subtract its own part from the average"
_FURTHEST: Final = "largest difference of a weight from plain federated averaging"
_MOST_TICKS: Final = 10
_PAIR: Final = 2


def page(result: Result) -> str:
    """Return the report as HTML: self-contained, for light and dark screens."""
    sections = [
        _lead(result),
        _figure("What it came to", _comparison(result), "Accuracy on a public test set that nobody trained on."),
        _figure("Accuracy over epochs", _epochs(result), _epochs_legend(result)),
        *(_figure("Rounds of masked-average", _rounds(each), _rounds_legend(each)) for each in _averages(result)),
        _figure("Accuracy against turn length", _turns(result), _turns_legend(result)),
        _figure("Who holds what", _shares(result), f"Samples of each class: {escape(result.skew)}."),
        _figure("Who saw what", _who_saw_what(result), _looked(result)),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>ppdl-mq demo: {escape(result.title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n<footer>{escape(result.software)}</footer>\n</main></body></html>\n"
    )


def _lead(result: Result) -> str:
    outcomes = result.protocols.values()
    best = max(result.alone.values())
    bits = [outcome.differing_bits for outcome in outcomes if outcome.differing_bits is not None]
    readable = [outcome.relay_readable for outcome in outcomes if outcome.relay_readable is not None]
    messages = sum(outcome.relay_messages for outcome in outcomes)
    tiles = [
        (_percent(max(outcome.accuracy for outcome in outcomes)), "the best model trained together"),
        (_percent(best), "the best organisation alone"),
        *([(f"{max(bits):,}", "bits differ from SGD on the pooled data in the same order")] if bits else []),
        *((in_short(each.largest_difference), _FURTHEST) for each in _averages(result)),
        (f"{sum(readable):,}" if readable else "?", f"of {messages:,} messages readable by the relay"),
    ]
    shown = "".join(f"<div><b>{value}</b><span>{escape(text)}</span></div>" for value, text in tiles)
    return (
        f"<header><p class=brand>ppdl-mq demo</p><h1>{escape(result.title)}</h1>"
        f"<p>{len(result.shares)} organisations trained one model together. Their samples stayed where they are; "
        f"sealed weights ({result.model_bytes / 1000:,.0f} kB, activation {escape(result.activation)}) "
        f"travelled through a relay that nobody has to trust, {escape(result.relay)}.</p>"
        f"<div class=tiles>{shown}</div></header>"
    )


def _comparison(result: Result) -> str:
    rows = [
        _row(f"{share.name} alone", result.alone[share.name], f"{share.training_rows:,} samples", "alone")
        for share in result.shares
    ]
    rows.append(_row("SGD, pooled and shuffled", result.pooled_accuracy, "what may not be done", "shuffled"))
    rows.append(_row("SGD, pooled, in the same order", result.pooled_same_order_accuracy, "likewise", "same"))
    rows += [_row(name, outcome.accuracy, _facts(outcome), _css(name)) for name, outcome in result.protocols.items()]
    return f"<table class=bars><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, accuracy: float, note: str, css: str) -> str:
    bar = f'<span class="bar {css}" style="width:{accuracy:.1%}"></span>'
    return (
        f'<tr class="{css}"><th scope=row>{escape(name)}</th><td class=track>{bar}</td>'
        f"<td class=number>{_percent(accuracy)}</td><td class=note>{escape(note)}</td></tr>"
    )


def _facts(outcome: Outcome) -> str:
    if outcome.averaged is not None:
        near = f"within {in_short(outcome.averaged.largest_difference)} of federated averaging"
    else:
        near = f"{outcome.differing_bits:,} differing bits"
    models = "" if outcome.distinct_models == 1 else f", {outcome.distinct_models} different models"
    return f"{near}{models}, {outcome.seconds:.1f} s"


def _epochs(result: Result) -> str:
    css = {SAME_ORDER: "trial", SHUFFLED: "shuffled", MASKED: "masked"}
    lines = [
        Line(name=curve.name, css=css.get(curve.name, "alone"), points=curve.points)
        for curve in reversed(result.curves)  # what was trained together comes first, and is drawn last
    ]
    ticks = _ticks(result.curves)
    return line_chart(lines, ticks=ticks, x_label="epochs", title="Accuracy over epochs")


def _ticks(curves: tuple[Curve, ...]) -> list[Tick]:
    """Return the whole numbers from 0 on that are worth a label, the last one among them."""
    last = max(int(at) for curve in curves for at, _ in curve.points)
    step = max(1, math.ceil(last / _MOST_TICKS))
    places = [place for place in range(0, last + 1, step) if last - place >= step / 2 or place == last]
    return [Tick(at=place, label=str(place)) for place in sorted({*places, last})]


def _epochs_legend(result: Result) -> str:
    names = ", ".join(share.name for share in result.shares)
    bits = [outcome.differing_bits for outcome in result.protocols.values() if outcome.differing_bits is not None]
    is_equal = bits and not any(bits)
    trial = "turn after turn, which is SGD on the pooled data in the same order, bit for bit"
    masked = f"{_key('masked')} masked-average; " if MASKED in result.protocols else ""
    return (
        f"{_key('trial')} {trial if is_equal else 'SGD on the pooled data, in the order of turns'}; {masked}"
        f"{_key('shuffled')} SGD on the pooled data, shuffled; {_key('alone')} each organisation alone ({names})."
    )


def _turns(result: Result) -> str:
    passes = sorted({each.passes for each in (*result.turn_lengths, *result.round_lengths)})
    ticks = [Tick(at=math.log(each), label=_passes(each)) for each in passes]
    level = tuple((tick.at, result.pooled_accuracy) for tick in (ticks[0], ticks[-1]))
    alone = tuple((tick.at, max(result.alone.values())) for tick in (ticks[0], ticks[-1]))
    lines = [
        Line(name="the best organisation alone", css="alone", points=alone),
        Line(name="SGD on the pooled data, shuffled", css="shuffled", points=level),
        *_lengths(MASKED, "masked", result.round_lengths),
        *_lengths("turn after turn", "trial", result.turn_lengths),
    ]
    return line_chart(
        lines,
        ticks=ticks,
        x_label="passes over the own samples in one turn (shorter turns send more)",
        title="Accuracy against turn length",
        y_from=_lowest(lines),
    )


def _lengths(name: str, css: str, lengths: tuple[TurnLength, ...]) -> list[Line]:
    """Return the line of one way to train, if there is one, and the ring around what was used."""
    points = [(math.log(each.passes), each.accuracy) for each in sorted(lengths, key=lambda each: each.passes)]
    own = [(math.log(each.passes), each.accuracy) for each in lengths if each.is_own]
    line = Line(name=name, css=css, points=tuple(points), marks=True)
    return [line, Line(name=f"{name}, as here", css=f"own {css}", points=tuple(own), marks=True)] if lengths else []


def _turns_legend(result: Result) -> str:
    ways = []
    if result.turn_lengths:
        ways.append(f"{_key('trial')} turn after turn ({_listed(result.turn_lengths)} turns in all)")
    if result.round_lengths:
        ways.append(f"{_key('masked')} masked-average ({_listed(result.round_lengths)} rounds in all)")
    return (
        f"What few messages cost where the shares are skewed, with as many passes in all (ringed: what was used). "
        f"{'; '.join(ways)}; {_key('shuffled')} shuffled SGD; {_key('alone')} the best organisation alone."
    )


def _listed(lengths: tuple[TurnLength, ...]) -> str:
    return ", ".join(f"{_passes(each.passes)}: {each.turns:,}" for each in lengths)


def _rounds(averaged: Averaged) -> str:
    lines = [
        Line(name=curve.name, css="masked" if curve.name == ALL_HOLDOUTS else "alone", points=curve.points)
        for curve in reversed(averaged.holdouts)
    ]
    ticks = _ticks(averaged.holdouts)
    return line_chart(lines, ticks=ticks, x_label="rounds", title="Accuracy over rounds", y_from=_lowest(lines))


def _rounds_legend(averaged: Averaged) -> str:
    return (
        f"{escape(averaged.a_round)} {_key('masked')} the average's accuracy on all hold-outs together, which every "
        f"organisation learns; {_key('alone')} on each organisation's own hold-out, which it alone knows. "
        f"{averaged.values_off:,} of {averaged.values:,} values, every weight after every round, were off by more than "
        "the stated bound."
    )


def _averages(result: Result) -> list[Averaged]:
    """Return what was found of masked-average, if it was run."""
    return [outcome.averaged for outcome in result.protocols.values() if outcome.averaged is not None]


def _lowest(lines: list[Line]) -> float:
    return 0.5 if min(share for line in lines for _, share in line.points) >= 0.5 else 0.0


def _css(protocol: str) -> str:
    return "masked" if protocol == MASKED else "trial"


def _shares(result: Result) -> str:
    most = max(count for share in result.shares for count in share.counts) or 1
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in result.classes)
    head = f"<thead><tr><th></th>{head}<th scope=col>all</th></tr></thead>"
    return f"<table class=heat>{head}<tbody>{''.join(_share(share, most) for share in result.shares)}</tbody></table>"


def _share(share: Share, most: int) -> str:
    cells = "".join(
        f'<td style="--heat:{round(100 * math.sqrt(count / most))}%">{count or "&middot;"}</td>'
        for count in share.counts
    )
    return f"<tr><th scope=row>{escape(share.name)}</th>{cells}<td class=all>{share.rows:,}</td></tr>"


def _who_saw_what(result: Result) -> str:
    rows = [("an organisation", "its own samples and keys, nobody else's", "")]
    for name, outcome in result.protocols.items():
        seen = f"names, sizes and times of {outcome.relay_messages:,} sealed messages ({_size(outcome.relay_bytes)})"
        readable = "not looked at" if outcome.relay_readable is None else f"{outcome.relay_readable:,} readable"
        rows.append((f"the relay, {name}", seen, readable))
        readers = _TWO if name == MASKED and len(result.shares) == _PAIR else READERS[name]
        rows.append((f"the weights, {name}", readers, "never the relay"))
    body = "".join(
        f"<tr><th scope=row>{escape(who)}</th><td>{escape(what)}</td><td>{escape(note)}</td></tr>"
        for who, what, note in rows
    )
    return f"<table class=plain><tbody>{body}</tbody></table>"


def _looked(result: Result) -> str:
    if any(outcome.relay_readable is None for outcome in result.protocols.values()):
        return "Messages and bytes as the peers counted them; this user of the broker may not copy what passes."
    return (
        "The relay kept a copy of everything that passed. A message counts as readable when it is not a clear header "
        "and one sealed rest, when zlib can shrink that rest, or when eight bytes in a row of it are those of a "
        "weight, a sample, labels or a private key; weights are also those that an organisation trained alone before "
        "they were averaged. What weights tell those who may read them is another matter."
    )


def _figure(title: str, content: str, caption: str) -> str:
    return f"<section><h2>{escape(title)}</h2><div class=scroll>{content}</div><p class=caption>{caption}</p></section>"


def _key(css: str) -> str:
    return f'<i class="key {css}"></i>'


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _passes(passes: float) -> str:
    return f"1/{round(1 / passes)}" if passes < 1 else f"{passes:.0f}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


_STYLE: Final = """
:root{--ground:#fbfaf8;--card:#fff;--text:#1d2327;--soft:#667078;--line:#e4e1da;--trial:#0b7a75;--shuffled:#d1792b;
--alone:#9aa3aa;--same:#5a8f8c;--masked:#6450a8}
@media(prefers-color-scheme:dark){:root{--ground:#14181b;--card:#1c2226;--text:#e8eaea;--soft:#98a3aa;--line:#30383d;
--trial:#3ecfc4;--shuffled:#f0a35e;--alone:#6d7880;--same:#7fb5b1;--masked:#b3a2f2}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);font:16px/1.55 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:40px 20px 60px}
h1{font-size:30px;line-height:1.2;margin:4px 0 10px}
h2{font-size:18px;margin:0 0 14px}
header p{color:var(--soft);margin:0 0 22px}
.brand{margin:0!important;color:var(--trial)!important;font-weight:600;letter-spacing:.02em}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px}
.tiles div,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tiles div{padding:14px 16px}
.tiles b{display:block;font-size:28px;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:13.5px;line-height:1.35;display:block}
section{padding:20px 22px;margin-top:18px}
.scroll{overflow-x:auto}
.caption{color:var(--soft);font-size:13.5px;margin:12px 0 0}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums}
th{font-weight:500;text-align:left}
th,td{padding:6px 10px 6px 0;vertical-align:middle}
.bars th{white-space:nowrap}
.bars .track{width:34%;min-width:110px}
.bars .note{color:var(--soft);font-size:13px}
.bars .number{text-align:right;width:64px}
.bars tr:is(.trial,.masked) :is(th,.number){font-weight:700}
.bar{display:block;height:12px;border-radius:3px;min-width:2px}
.bar.alone{background:var(--alone)}.bar.shuffled{background:var(--shuffled)}.bar.same{background:var(--same)}
.bar.trial{background:var(--trial)}.bar.masked{background:var(--masked)}
.heat td,.heat thead th{text-align:center;padding:6px 4px;min-width:38px}
.heat td{background:color-mix(in srgb,var(--trial) calc(var(--heat,0%)*.6),transparent);border:2px solid var(--card)}
.heat .all{background:none;font-weight:600}
.plain tr+tr{border-top:1px solid var(--line)}
.plain th{white-space:nowrap;padding-right:18px}
.plain td:last-child{text-align:right;white-space:nowrap}
svg{width:100%;min-width:460px;height:auto;display:block}
svg text{fill:var(--soft);font-size:12px}
svg .x{text-anchor:middle}svg .y{text-anchor:end}
svg .grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
polyline.alone{stroke:var(--alone)}
polyline.shuffled{stroke:var(--shuffled);stroke-width:2.2;stroke-dasharray:6 4}
polyline.trial{stroke:var(--trial);stroke-width:2.6}
polyline.masked{stroke:var(--masked);stroke-width:2.6}
circle.trial{fill:var(--trial)}circle.masked{fill:var(--masked)}
circle.own{fill:var(--card);stroke:var(--trial);stroke-width:3}circle.own.masked{stroke:var(--masked)}
.key{display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle}
.key.trial{background:var(--trial)}.key.masked{background:var(--masked)}.key.shuffled{background:var(--shuffled)}.key.alone{background:var(--alone)}
footer{color:var(--soft);font-size:13px;margin-top:22px}
"""
