"""The decoder against transformers' LlamaForCausalLM."""

import copy
import dataclasses

import pytest
import torch
from recording_selector import Recorder
from transformers import LlamaConfig, LlamaForCausalLM

from sqap_vla_ros.contracts import SelectedTokens, SelectionContext
from sqap_vla_ros.policy.config import DecoderConfig
from sqap_vla_ros.policy.decoder import Decoder

CONFIG = DecoderConfig(width=64, depth=4, heads=4, mlp_width=176, vocabulary=100)
GRID = (4, 4)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=176,
        vocab_size=100,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        attn_implementation="eager",
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def decoder(llama) -> Decoder:
    decoder = Decoder(CONFIG).eval()
    decoder.load_state_dict(llama.model.state_dict())  # the same names, strictly
    return decoder


def embeddings(batch: int = 1, length: int = 30) -> torch.Tensor:
    return torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def test_cognition_is_the_last_hidden_state_of_a_plain_llama(llama, decoder):
    values = embeddings()
    expected = llama(inputs_embeds=values, output_hidden_states=True).hidden_states[-1][:, -1]
    torch.testing.assert_close(decoder(values).cognition, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bfloat16_agrees_to_its_precision(llama, decoder):
    values = embeddings().bfloat16()
    llama, decoder = (copy.deepcopy(module).to(torch.bfloat16) for module in (llama, decoder))
    expected = llama(inputs_embeds=values, output_hidden_states=True).hidden_states[-1][:, -1]
    got = decoder(values).cognition
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float(), expected.float()).item() > 0.9995


@torch.inference_mode()
def test_right_padding_changes_nothing(decoder):
    values, lengths = embeddings(3, 30), torch.tensor([30, 21, 26])
    padded = decoder(values, lengths).cognition
    for row, length in enumerate(lengths.tolist()):
        single = decoder(values[row : row + 1, :length]).cognition[0]
        torch.testing.assert_close(padded[row], single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query", ["cognition", "instruction"])
@torch.inference_mode()
def test_attention_row_equals_eager_attention(llama, decoder, query):
    """The row shown to the selector is the head mean of transformers' own attention map at the layer before."""
    values, lengths = embeddings(2, 26), torch.tensor([26, 23])
    selector = Recorder(prune_layer=2, query=query)
    decoder(values, lengths, selector=selector, context=SelectionContext(grid=GRID, gripper_patch=[None, None]))
    for row, length in enumerate(lengths.tolist()):
        maps = llama(inputs_embeds=values[row : row + 1, :length], output_attentions=True).attentions[1][0].mean(dim=0)
        asked = maps[-1:] if query == "cognition" else maps[17:]
        expected = asked.mean(dim=0)[1:17]
        torch.testing.assert_close(selector.seen[0].attention[row], expected, atol=1e-6, rtol=1e-4)
    assert selector.seen[0].attention.dtype == torch.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sized(Recorder):
    """Keeps all tokens and says how many each stands for."""

    ratio: float = 0.0
    prune_layer: int = 0
    needs: frozenset[str] = frozenset()
    sizes: torch.Tensor

    def select(self, context: SelectionContext) -> SelectedTokens:
        return dataclasses.replace(super().select(context), sizes=self.sizes)


@torch.inference_mode()
def test_a_token_that_stands_for_n_attracts_as_n(llama, decoder):
    """log n is added to its logits in every layer behind the selection, padded or not."""
    values, lengths = embeddings(2, 26), torch.tensor([26, 23])
    sizes = torch.randint(1, 9, (2, 16), generator=torch.Generator().manual_seed(0)).float()
    context = SelectionContext(grid=GRID, gripper_patch=[None, None])
    for given in (lengths, None):
        found = decoder(values, given, selector=Sized(sizes=sizes), context=context).cognition
        for row, length in enumerate([26, 26] if given is None else lengths.tolist()):
            mask = torch.full((length, length), -torch.inf).triu(1)
            mask[:, 1:17] += sizes[row].log()
            states = llama.model(inputs_embeds=values[row : row + 1, :length], attention_mask=mask[None, None])
            torch.testing.assert_close(found[row], states.last_hidden_state[0, -1], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_last_layer_asks_for_one_row_only(decoder):
    seen = {}
    layer = decoder.layers[-1]
    watched = {"q": layer.self_attn.q_proj, "k": layer.self_attn.k_proj, "mlp": layer.mlp.gate_proj}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0].shape[1]}))
        for name, module in watched.items()
    ]
    try:
        decoder(embeddings())
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == {"q": 1, "k": 30, "mlp": 1}


def test_impossible_selections_are_refused(decoder):
    with pytest.raises(ValueError, match="needs a SelectionContext"):
        decoder(embeddings(), selector=Recorder())
    context = SelectionContext(grid=GRID, gripper_patch=[None])
    with pytest.raises(ValueError, match="before layer 4, but the decoder has layers 0 to 3"):
        decoder(embeddings(), selector=Recorder(prune_layer=4), context=context)


def test_gradients_reach_the_embeddings(decoder):
    values = embeddings().requires_grad_()
    decoder(values).cognition.square().sum().backward()
    assert values.grad.abs().sum(dim=-1).min() > 0


def test_an_epsilon_may_be_a_whole_number(decoder):
    """JSON that people write says 1, and transformers takes no whole number."""
    assert Decoder(dataclasses.replace(decoder.config, rms_eps=1)).norm.variance_epsilon == 1.0
