"""Trains a differentiable neural computer to remember words and say them as often as is asked for.

The network hears some words of bits and a number, and then says the words that many times, followed by an end mark: the
repeat-copy task of pytorch-dnc, with its sizes, its loss and its optimiser. The figure shows one sequence, step by step: what
the network hears and says, where it writes and reads, what is in its memory, and which locations it knows to be in use and to
have been written one after the other.

    python examples/dnc_repeat_copy.py --out dnc-demo.png
    python examples/dnc_repeat_copy.py --preset reference    # as pytorch-dnc up to its first report; that solves nothing yet
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

from demo_tools import explain, output_file, positive, rates_in_turns

try:
    import torch
    from dnc_repeat_copy_report import History, Result, Speed, Trace, draw_figure, print_tables
    from torch import Tensor
    from tqdm import tqdm

    from routing_ext import reference
    from routing_ext.memory import DNCCircuit
    from routing_ext.tasks import RepeatCopy, repeat_copy_batch
except ImportError as error:
    sys.exit(explain(error))
except KeyboardInterrupt:
    sys.exit(130)

BATCH = 16
SIZES = {"hidden_dim": 64, "num_write_heads": 1, "num_read_heads": 4, "mem_hei": 16, "mem_wid": 16, "clip_value": 20.0}
WORDS = ((1.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 0.0))  # of the sequence in the figure
TEST_SEQUENCES = 1000


class Preset(NamedTuple):
    steps: int
    lr: float
    decay: bool  # of the learning rate, to 0 in a straight line


PRESETS = {"solved": Preset(steps=2500, lr=5e-3, decay=True), "reference": Preset(steps=500, lr=1e-4, decay=False)}


def train(circuit: DNCCircuit, task: RepeatCopy, generator: torch.Generator, preset: Preset) -> History:
    optimizer = torch.optim.RMSprop(circuit.parameters(), lr=preset.lr, alpha=0.9, eps=1e-10, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / preset.steps if preset.decay else 1.0)
    history, every, start = History(), max(1, preset.steps // 100), time.perf_counter()
    sums, done = torch.zeros(3), 0
    with tqdm(total=preset.steps * BATCH, desc="repeat-copy", unit=" sequences", unit_scale=True, dynamic_ncols=True) as bar:
        for step in range(1, preset.steps + 1):
            batch = task.batch(BATCH, generator)
            output, _ = circuit.unroll(batch.input)
            loss = batch.loss(output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                wrong = batch.wrong_bits(output).any(0).any(-1)
                sums += torch.stack([loss, batch.bits_per_sequence(output), wrong.float().mean()])
            done += 1
            if step % every == 0 or step == preset.steps:
                mean_loss, bits, wrong_share = (sums / done).tolist()
                history.append(step, mean_loss, bits, wrong_share)
                bar.set_postfix_str(f"loss {mean_loss:.5f}, {bits:.2f} bits, {wrong_share:.0%} wrong", refresh=False)
                bar.update(done * BATCH)
                sums, done = sums.zero_(), 0
    history.sequences_per_second = preset.steps * BATCH / (time.perf_counter() - start)
    return history


@torch.no_grad()
def test(circuit: DNCCircuit, task: RepeatCopy, generator: torch.Generator) -> Result:
    batch = task.batch(TEST_SEQUENCES, generator)
    output, _ = circuit.unroll(batch.input)
    right = ~batch.wrong_bits(output).any(0).any(-1)
    guessing = batch.bits_per_sequence(torch.full_like(output, 0.5))
    return Result(batch.bits_per_sequence(output).item(), guessing.item(), int(right.sum()), TEST_SEQUENCES)


@torch.no_grad()
def record(circuit: DNCCircuit, task: RepeatCopy) -> Trace:
    """The steps of one sequence, the words as often as the task has at most."""
    words = torch.tensor(WORDS).unsqueeze(1)
    repeats = torch.tensor([task.max_repeats])
    batch = repeat_copy_batch(words, torch.tensor([len(WORDS)]), repeats, task.max_repeats_norm)
    state, outputs, states = circuit.initial_state(1), [], []
    for x in batch.input.split(1):
        y, state = circuit.unroll(x, state)
        outputs.append(y)
        states.append(state)
    output = torch.cat(outputs)

    def over_time(field: str) -> Tensor:
        return torch.stack([getattr(state, field)[0] for state in states])

    return Trace(
        input=batch.input[:, 0],
        target=batch.target[:, 0],
        output=output[:, 0],
        counts=batch.mask[:, 0, 0] > 0,
        wrong=batch.wrong_bits(output)[:, 0],
        num_words=len(WORDS),
        repeats=task.max_repeats,
        memory=over_time("memory"),
        usage=over_time("usage"),
        link=over_time("link"),
        write_weights=over_time("write_weights"),
        read_weights=over_time("read_weights"),
    )


def measure_speed(circuit: DNCCircuit, task: RepeatCopy, generator: torch.Generator, seconds: float) -> Speed:
    """Forward and backward of the circuit, and of its definition in plain PyTorch with the same parameters and batch."""
    batch = task.batch(BATCH, generator)
    parameters = list(circuit.parameters())

    def ours() -> Tensor:
        return circuit.unroll(batch.input)[0]

    def plain() -> Tensor:
        return reference.dnc_sequence(batch.input, parameters, circuit.initial_state(BATCH), clip_value=circuit.clip_value)[0]

    torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-4)
    return Speed(
        *rates_in_turns(
            lambda: torch.autograd.grad(batch.loss(ours()), parameters),
            lambda: torch.autograd.grad(batch.loss(plain()), parameters),
            BATCH,
            seconds,
        )
    )


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    preset = PRESETS[args.preset]
    preset = preset._replace(steps=args.steps or preset.steps, lr=args.lr or preset.lr)
    task = RepeatCopy()
    circuit = DNCCircuit(input_dim=task.input_dim, output_dim=task.output_dim, **SIZES)
    history = train(circuit, task, generator, preset)
    result = test(circuit, task, generator)
    print("Timing the circuit and its definition in plain PyTorch in turns ...", flush=True)
    speed = measure_speed(circuit, task, generator, seconds=min(3.0, 0.01 * preset.steps))
    trained = f"{preset.steps:,} steps of {BATCH} sequences, seed {args.seed}"
    timed = f"forward and backward, batch {BATCH}, {args.threads} thread{'s' if args.threads > 1 else ''}"
    print_tables(history, result, speed, trained, timed)
    args.out.write_bytes(draw_figure(record(circuit, task), history, result, speed, trained, timed))
    print(f"Figure: {args.out}")


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def parse_args() -> argparse.Namespace:
    about = "Trains a differentiable neural computer to remember words and say them as often as is asked for."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=output_file, default=Path("dnc-demo.png"), help="where the figure goes")
    presets = "; ".join(
        f"{name}: {p.steps} steps, {p.lr:g}{' falling to 0' if p.decay else ''}" for name, p in PRESETS.items()
    )
    parser.add_argument("--preset", choices=PRESETS, default="solved", help=f"training steps and learning rate ({presets})")
    parser.add_argument("--steps", type=positive, help="training steps, if not those of the preset")
    parser.add_argument("--lr", type=positive_float, help="learning rate, if not that of the preset")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the training")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except KeyboardInterrupt:
        state = "is as it was before" if args.out.exists() else "was not written"
        print(f"\nStopped before the end. Nothing of this run is kept; {args.out} {state}.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
