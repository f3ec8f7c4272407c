"""A mixer from another package: plain gated linear attention, with one decay a head projected from the input."""

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lit_thinkfast import MIXERS, Mixer
from lit_thinkfast.mixers import States, StateShapes
from lit_thinkfast.mixers.scan import decay_scan


class GatedLinearAttention(Mixer):
    """``h_t = sigmoid(w u_t) h_{t-1} + v_t k_t^T``, ``y_t = h_t q_t / sqrt(p)``; it has no convolution."""

    def __init__(self, config, layer_idx: int, *, floor: float = 0.9) -> None:
        super().__init__(config, layer_idx)
        self.heads, self.floor = config.num_attention_heads, floor
        self.groups = self.heads // config.num_key_value_heads
        self.width = config.head_dim
        for name, heads in (("q", self.heads), ("k", config.num_key_value_heads), ("v", config.num_key_value_heads)):
            setattr(self, f"{name}_proj", nn.Linear(config.hidden_size, heads * self.width))
        self.gate = nn.Linear(config.hidden_size, self.heads)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size)

    def reset_parameters(self) -> None:
        for child in self.children():
            nn.init.normal_(child.weight, std=0.02)
            nn.init.zeros_(child.bias)

    def init_from_attention(self, attention: nn.Module) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(self, name).load_state_dict(getattr(attention, name).state_dict(), strict=False)

    @classmethod
    def state_shapes(cls, config, options) -> StateShapes:
        return StateShapes(conv=(0, 0), state=(config.num_attention_heads, config.head_dim, config.head_dim))

    def mix(self, hidden_states: Tensor, *, states, attention_mask, seq_idx) -> tuple[Tensor, States]:
        u = hidden_states if attention_mask is None else hidden_states * attention_mask[..., None]
        q, k, v = (p(u).unflatten(-1, (-1, self.width)) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (part.repeat_interleave(self.groups, dim=2) for part in (k, v))
        log_decay = logsigmoid(self.gate(u)) * (1 - self.floor)
        if attention_mask is not None:
            v, log_decay = v * attention_mask[..., None, None], log_decay * attention_mask[..., None]
        before = None if states is None else states.state
        y, state = decay_scan(v, log_decay, k, q * self.width**-0.5, seq_idx=seq_idx, initial_state=before)
        return self.o_proj(y.flatten(2)), States(u.new_empty(len(u), 0, 0), state)


MIXERS["gla"] = GatedLinearAttention
