"""What holds of all rules together."""

import torch
from brute_force import tables
from torch import nn
from torch.nn import functional as F

from estfx.axes.walk import RESIZERS, RULES

aten = torch.ops.aten


def test_every_rule_stands_in_a_family_and_every_family_has_its_tests():
    assert {rule.__module__ for rule in RULES.values()} == tables()


def test_every_resizer_stands_beside_its_rule():
    for op, resizer in RESIZERS.items():
        assert op in RULES
        assert resizer.__module__ == RULES[op].__module__


class CommonSpellings(nn.Module):
    """How decoders write what the rules are about; `x` is [2, 4, 6]."""

    def forward(self, x, w, positions):
        b, t, d = x.shape
        q, k, v = F.linear(x, w).chunk(3, dim=-1)
        q, k, v = (y.view(b, t, 2, 3).transpose(1, 2) for y in (q, k, v))
        first, second = q.unflatten(-1, (1, 3))[..., :1], q[..., 1:]
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        spread = k[:, :, None].expand(b, 2, 5, t, 3).reshape(b, 10, t, 3)
        complex_ = torch.view_as_complex(x.float().reshape(b, t, -1, 2)) * torch.polar(torch.ones(3), torch.ones(3))
        mask = torch.full((t, t), float("-inf")).triu(1)
        return [
            F.scaled_dot_product_attention(q, k, v, is_causal=True),
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)),
            F.softmax(q @ k.mT + mask, dim=-1, dtype=torch.float32).to(q) @ v,
            torch.einsum("bhtd,bhsd->bhts", q, k),
            torch.baddbmm(torch.zeros(1, 1, 1).double(), q.flatten(0, 1), k.flatten(0, 1).mT),
            first.squeeze(-2),
            second.unsqueeze(0).squeeze(0),
            turned.movedim(1, 2).swapaxes(1, 2).permute(0, 2, 1).contiguous(),
            spread.repeat(1, 1, 1, 2).repeat_interleave(2, dim=1),
            torch.view_as_real(complex_).flatten(2).type_as(x),
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
            F.rms_norm(x, (d,)),
            F.layer_norm(x, (d,)),
            F.group_norm(x, 2),
            F.normalize(x, dim=-1),
            (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) + x.var(-1, unbiased=False)[..., None],
            F.silu(x) * F.gelu(x, approximate="tanh") + F.relu(x).square() + F.softplus(x) + F.logsigmoid(x),
            F.glu(x),
            F.dropout(x, 0.1, True),
            F.pad(x, (0, 0, 1, 0)),
            F.embedding(positions, w),
            x[:, -1],
            x[:, positions],
            x.split([2, 4], dim=-1)[0].narrow(-1, 1, 1),
            x.unbind(1)[0],
            torch.cat((x, torch.zeros_like(x)), dim=-1),
            torch.where(x > 0, x, 0.0).masked_fill(x > 1, 0.0).clamp(min=0).logsumexp(-1),
            x.gather(-1, (x > 0).long()).index_select(1, positions),
            x.cumsum(1).sum(-1).amax(-1),
            torch.arange(t).view(-1, 1) + x.new_zeros(t),
        ]


def test_what_decoders_commonly_call_has_a_rule():
    inputs = (torch.randn(2, 4, 6).double(), torch.randn(18, 6).double(), torch.tensor([0, 3, 1]))
    graph = torch.export.export(CommonSpellings(), inputs, strict=False).graph
    called = {node.target for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    unknown = {op for op in called if op not in RULES and torch.Tag.pointwise not in op.tags}
    assert unknown == {aten._assert_tensor_metadata.default}  # which a pass drops


def test_the_plain_form_of_an_operator_in_place_has_a_rule_too():
    """`DropNoise` puts it in the place of one that writes into a value with which nothing else shares memory."""
    in_place = [op for op in RULES if isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable]
    plain = {getattr(getattr(aten, op._schema.name[6:-1], None), op._overloadname, None) for op in in_place} - {None}
    assert plain
    assert {op for op in plain if op not in RULES and torch.Tag.pointwise not in op.tags} == set()
