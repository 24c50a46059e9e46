#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How the cost of synchronising grows with the number of ranks: a model, not a measurement.

usage: mpi/model.py BENCH_MPI_JSON

Takes the time of merging from what `make bench-mpi` wrote, and assumes the rest. Prints the tables of docs/mpi.md,
which explains the model.
"""

import json
import sys
from math import ceil, log2

HEADER = 32  # bytes in front of a rank's statistics
RANKS = (2, 64, 1024)
# name, seconds per message (alpha), bytes per second (1/beta)
NETWORKS = (
    ("10 Gb/s Ethernet, TCP", 30e-6, 1.1e9),
    ("100 Gb/s InfiniBand", 2e-6, 11e9),
)
# A rank is a socket, whose memory moves so many bytes per second; training reads or writes a tensor of floats in NHWC
# three times forward, x twice and y, and five times backward, x and dy twice and dx.
MEMORY = 100e9
TRAFFIC = 4 * (3 + 5)
IMAGES = (32, 24)  # of each rank: one node, and several
# How often ResNet-50 has a batch norm of (channels, positions): 53 in all.
RESNET50 = {
    (64, 12544): 1, (64, 3136): 6, (256, 3136): 4, (128, 3136): 1, (128, 784): 7, (512, 784): 5,
    (256, 784): 1, (256, 196): 11, (1024, 196): 7, (512, 196): 1, (512, 49): 5, (2048, 49): 4,
}


def nodes_of(first, n):
    """Whole subtrees that images [first, first + n) consist of."""
    count = 0
    while n:
        size = first & -first or 1 << 62
        while size > n:
            size >>= 1
        first, n, count = first + size, n - size, count + 1
    return count


def most_nodes(images, ranks):
    return max(nodes_of(rank * images, images) for rank in range(ranks))


def gather(network, ranks, message):
    """Allgather: log2 R steps; each rank receives the messages of all others."""
    _, alpha, speed = network
    return ceil(log2(ranks)) * alpha + (ranks - 1) * message / speed


def exchange(network, ranks, message):
    """Alltoall of a rank's message, cut into R parts: pair by pair, or in log2 R steps that carry half each."""
    _, alpha, speed = network
    steps = ceil(log2(ranks))
    pairwise = (ranks - 1) * alpha + (ranks - 1) / ranks * message / speed
    return min(pairwise, steps * (alpha + message / 2 / speed))


def allgather_cost(network, ranks, nodes, channels, merge):
    """What bnorm_mpi does: all messages to all ranks, and each rank merges all."""
    message = HEADER + 16 * channels * nodes
    return gather(network, ranks, message), ranks * nodes * channels * merge


def split_cost(network, ranks, nodes, channels, merge):
    """The next step: each rank merges all ranks' nodes of its share of the channels, and spreads the result."""
    part = ceil(channels / ranks)
    owners = ceil(channels / part)
    message = HEADER * ranks + 16 * channels * nodes
    network_time = exchange(network, ranks, message) + gather(network, ranks, HEADER + 16 * channels / owners)
    return network_time, ranks * nodes * part * merge


def table(bench, network, images):
    merge = {name: ns * 1e-9 for name, ns in bench["merge_ns"].items()}
    alone = sum(c * hw * count for (c, hw), count in RESNET50.items()) * images * TRAFFIC / MEMORY
    print(f"{network[0]} (alpha {network[1] * 1e6:g} us, {network[2] / 1e9:g} GB/s), {images} images per rank, bnorm alone {alone * 1e3:.0f} ms:\n")
    print("| ranks | nodes | received, c = 2048 | allgather | merge | of bnorm alone | worst layer | split by channels |")
    print("|---|---|---|---|---|---|---|---|")
    for ranks in RANKS:
        nodes = most_nodes(images, ranks)
        sent = merged = split = 0
        worst = (0, 0)
        for (channels, _), count in RESNET50.items():
            both = 0
            for merging in merge.values():
                network_time, merge_time = allgather_cost(network, ranks, nodes, channels, merging)
                sent += count * network_time
                merged += count * merge_time
                split += count * sum(split_cost(network, ranks, nodes, channels, merging))
                both += network_time + merge_time
            worst = max(worst, (both, channels))
        largest = ranks * (HEADER + 16 * max(c for c, _ in RESNET50) * nodes)
        share = (sent + merged) / alone
        print(
            f"| {ranks:,} | {nodes} | {largest / 1e6:.2f} MB | {sent * 1e3:.2f} ms | {merged * 1e3:.2f} ms "
            f"| {share:.0%} | {worst[0] * 1e3:.2f} ms, c = {worst[1]} | {split * 1e3:.2f} ms |"
        )
    print()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        bench = json.load(file)
    bench["rows"] = [row for row in bench["rows"] if row]
    nodes = most_nodes(bench["images"], bench["processes"])
    for row in bench["rows"]:
        if row["message_bytes"] != HEADER + 16 * row["c"] * nodes:
            sys.exit(f"{row['layer']}: the message has {row['message_bytes']} bytes, which is not the model's: mend it")
        if (row["c"], row["hw"]) not in RESNET50:
            sys.exit(f"{row['layer']} is not of ResNet-50: run make bench-mpi without --network")
    print(f"Bench: {bench['cpu']}, {bench['mpi']}, kernel set {bench['kernel_set']}")
    merge = bench["merge_ns"]
    print(f"merge per node and channel: {merge['forward']:.2f} ns forward, {merge['backward']:.2f} ns backward\n")
    for network in NETWORKS:
        for images in IMAGES:
            table(bench, network, images)


if __name__ == "__main__":
    main()
