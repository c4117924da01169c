"""Batches of similar length come in random order, the same for a seed and an epoch."""

import datasets
import pytest
import torch
from transformers import BertModel, TrainingArguments

from hf_pe.distill import DistillationTrainer
from hf_pe.distill.sampling import SimilarLengthSampler
from hf_pe.dummies.tiny import randomize_weights_
from tests.helpers import bert_config

SIZE = 16


@pytest.fixture
def lengths():
    """Of two classes: half of the rows are short, half are long."""
    draw = torch.Generator().manual_seed(0)
    short, long = torch.randint(4, 20, (1003,), generator=draw), torch.randint(40, 120, (1000,), generator=draw)
    return torch.cat([short, long])[torch.randperm(2003, generator=draw)]


def batches(order, lengths):
    """Lengths of whole batches, [batches, rows]."""
    whole = order[: len(order) // SIZE * SIZE]
    return lengths[torch.tensor(whole)].view(-1, SIZE).float()


def padding(grouped):
    """Share of the tokens of batches that is padding."""
    return float(1 - grouped.sum() / (grouped.max(1).values.sum() * SIZE))


def trainer(rows, folder, **changes):
    """A trainer over rows of these lengths that groups by length."""
    data = datasets.Dataset.from_dict({"input_ids": [[1] * int(n) for n in rows]})
    settings = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": SIZE, "use_cpu": True}
    student, teacher = (randomize_weights_(BertModel(bert_config(num_hidden_layers=1)), seed=seed) for seed in (0, 1))
    return DistillationTrainer(
        model=student,
        args=TrainingArguments(output_dir=str(folder), report_to="none", **settings | changes),
        train_dataset=data,
        data_collator=lambda some: {
            "input_ids": torch.ones(len(some), 4, dtype=torch.long),
            "attention_mask": torch.ones(len(some), 4, dtype=torch.long),
        },
        teacher=teacher.eval().requires_grad_(False),
        task="embedding",
    )


def test_a_batchs_length_says_nothing_about_the_next_ones(lengths, tmp_path):
    order = list(trainer(lengths, tmp_path)._get_train_sampler())
    grouped = batches(order, lengths)
    means = grouped.mean(1)
    assert sorted(order) == list(range(len(lengths)))
    together = torch.corrcoef(torch.stack([means[:-1], means[1:]]))[0, 1]
    assert abs(together) < 0.25  # two standard errors of 124 pairs are 0.18
    drift = torch.corrcoef(torch.stack([means, torch.arange(len(means)).float()]))[0, 1]
    assert abs(drift) < 0.25
    draw = torch.Generator().manual_seed(1)
    at_random = padding(batches(torch.randperm(len(lengths), generator=draw).tolist(), lengths))
    assert padding(grouped) < 0.2 * at_random


def test_the_order_is_that_of_the_seed_and_the_epoch(lengths):
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(len(orders))  # what was drawn before does not matter
        sampler = SimilarLengthSampler(lengths.tolist(), SIZE, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_few_rows_come_once_each(rows):
    assert sorted(SimilarLengthSampler([3] * rows, SIZE)) == list(range(rows))


def test_each_epoch_of_the_trainer_has_an_order_of_its_own(lengths, tmp_path):
    loader = trainer(lengths[:64], tmp_path).get_train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append([row for batch in loader.batch_sampler for row in batch])
    assert orders[0] == orders[2] != orders[1]


def test_rows_that_no_length_groups_stay_in_random_order(lengths, tmp_path):
    sampler = trainer(lengths, tmp_path, train_sampling_strategy="random")._get_train_sampler()
    assert not isinstance(sampler, SimilarLengthSampler)
