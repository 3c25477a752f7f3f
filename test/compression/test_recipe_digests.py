"""Compressed files and stored results name a recipe by its digest, so the digest of a shipped recipe never changes."""

import dataclasses
import json
from pathlib import Path

import pytest

from sqap_vla_ros.compression.recipe import Recipe, list_recipes, load_recipe

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

DIGESTS = {
    "bf16": "f155af85d9f193af083eaa3ae652c249384ef0872b6e3e7020902195de68632c",
    "coverage_qvla": "2d8c5b9885535b29508cd4654b19f6afffa445ea791602f3e7fdb22780fef08f",
    "coverage_w4a8": "aef6894cb47b8677514e283f6e289c9cd20a5b82770a91f32f0e467f5fe338fd",
    "coverage_w4a8_full": "c87d2ebd9f9b2305389bac3149fb940e45ad5ebf04fdd6e3bfd94d7a4bd1fe68",
    "divprune": "f66ec2e35c8fcf2385e0c219a25e0ec9f77066e7e4256fe10b68a928ce132148",
    "efficient_vla": "df89ca0fc6933149d8ed0ed87339858d9cfb3aaa93762372f116803e91e02615",
    "efficient_vla_small": "c9989238acac17d5b451412dc6cc7cb28c220df445ef04e00f685a50841408e0",
    "fastervlm": "8276025f69f9725aa277a51d296dcad9fb1ef57e32e6e0b730696f140365d5b4",
    "fastv": "cfc80ae25bd83bbd4d78302b46b7d938898c395c76cae7f75608d93b55f2035b",
    "fp32": "5c60b7f054769733ee84ea14383705e931a30741e6cb97a2fed8a9fa25597c31",
    "qvla_w2.5a8": "fbe89001767a795e12364f927d59562170e9217eaf1a850fc7f971aebf040b40",
    "qvla_w3a8": "232ad466930f6e6a2a5d7bbc66913a4aee1480ec2cfce3768c55f0600c9d11b2",
    "qvla_w3a8_vision": "56f9b63a530dc1eb2747b14a9805add8e08fd33e7bb03518c97bae27c0064661",
    "qvla_w4a16": "3f7e38a972ee78a4b84ddf4d7aae10cff850bda92431c563e58a52b1702c9358",
    "qvla_w4a4": "642c0dc1c2f040ad5c8b01734ae66f6bf5f3b80f80fb9bfc7bb6a86d35ad4bdc",
    "qvla_w4a8": "53a1b0f954385b5269d387be26b931f55c25cd3a3c4868965d49208be896ebd1",
    "qvla_w8a16": "6f61f5833488248b50802f0f18489ad54787c108571d881c3aea623fb5f79eb6",
    "qvla_w8a8": "fecb36d7c988bda8b46fb1c5e26d8314fea04c27f19d25f9923818e467b58f51",
    "random_drop": "458a23e11bf3ce3f7c4aa5ea12b09c930e7d5ac2e903e53901c9f65045906d9b",
    "random_same_budget": "05f9eacc8004b636bc712268467ef7bdc086b70a4b3eecefe334eefff3b86910",
    "rtn_w3a3": "38f8713528895059d6b452096aa2d443f370b51c438ef69dcedc0f773626eea9",
    "rtn_w4a16": "0ac225f7f82c3034a1f76a31a43937256b061977096d510457917d8e1e7e2775",
    "rtn_w4a4": "e6834d9097880c2ee411f52975effbed8a49e8cfbe69b20935e927f84dd7ff49",
    "rtn_w8a16": "1f68a829dd3c3786360d32a9d53a14cbbb309746cbf90aa478f305f0b23523c8",
    "rtn_w8a8": "d8299bd5e3a753a922fe21f35c14e4d443722d1a189d6f0b4f60ec63bac2bec4",
    "sqap": "d015269f3ce58d9200d713b83c967e5b72dfc2b11c99272ecf8a4adb41fbd551",
    "sqap_paper": "0c739b3cb2f59bcc634b5a94a9ceef8311420844a0aeb5df26dd90c86c85dce6",
    "sqap_pruning": "1c833a8791d244c1816215b46236cd4992d4edec4dd18e911d72dc5903afd8bb",
    "sqap_qvla": "1866a648c88dce1001cdd76108d4e42e3f3887acb650391e0fc4f4c96e3d2cf2",
    "sqap_text8": "017f479963690205133dccacf432ce1977fe140627e7e6316f1a76c9ccf800e0",
    "sqap_w3a3": "f40f9b6ced941ad297c2d5bd3ab510e8e48fa02d2a8f430e819a242cdc156cf7",
    "sqap_w4a8": "56285572516d86b5a322450c8377ed3c0f3d0a54eebca822e2d64982926a0e8c",
    "sqap_w4a8_full": "424d7c03f02dfb6ac7f368de7008a972af111d178a605eef28fdf2b685eb7de0",
    "tome": "c28987c6e2e5584eda14c1d00855486f55a44bc974fcbbdcae5e546896612819",
    "uniform_grid": "78b518d2368a415a938dde20c3cd5b8eec4f75f7c0740f2dd20a674f35e7e2d1",
    "visionzip": "1e39844039baab9b90328ce3ace3bc2619a7800bb3a0243bcdfdf41c0c1636df",
    "vla_cache": "3827ab58908642c628a1cc89d2188da891c9eed86a84b083354a234ce3e5f820",
    "w2a16": "5d3e5e501e79b8936abc3bf846d500675d7cbc19abc2e006ffeb1e1fdd26ac0c",
    "w3a3": "478332ed4d3d1bd4a56e88d2f36c8fd723987bfe16fd3d51c5d3f3489f29e552",
    "w4a16_awq": "0b00c4ecce3ee3d70153dfe5d7c6bc35a358c61b60324c158177b53d66a53924",
    "w4a4": "8ef9ddb088362138237aa4e2fdd05d3d332f180d3fbffa2d5c53297961706546",
    "w4a4_down8": "5a9ed85a33e744c5377d8e819faeb2c12b06fc5b0592aa168f3a6c49e5d764ff",
    "w4a4_omniquant": "803a5e0eb3aceae45779fe231cb966c3bdca66436367d3a3881079697b466057",
    "w4a4_rotated": "c06a1a216daa2310c052794535ec0d938701f116ff9b8b7d09d9695e4af936a8",
    "w4a4_smoothquant": "cfd989be5dcaaa1847c22ec5510d03daaf3f67be3fb651288320f751caa88526",
    "w4a4_text8": "bbc738b8918e73e3972a1dda7a82fd21d067481afd9315b8585ad84889ae831e",
    "w4a8": "b54b7954ca4114a632ad5c4d8b94b2a20cdb6d0951d1505eec8e5353f39ec99f",
    "w4a8_full": "fe1d7662db04819e5ebb2041adb4d27c313912c247f575093209d7fd71a86f4b",
    "w8a16_awq": "32afa233ba06d2f637b19536497754192ccd5d9ac22e9b6853b0a5d42c8586a4",
    "w8a8_omniquant": "d8b6f47ae49d59757a83f60f0bbc4f0235ab1971e5a7a4af527537517ef94eaf",
    "w8a8_smoothquant": "e0538da5371655ea5e90a27bf2ac288fb2a378d4ad5db3c44a031bfe6fc32879",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_shipped_recipe_keeps_its_digest(name):
    assert load_recipe(name).digest == DIGESTS[name]


def test_every_shipped_recipe_has_its_digest_written_down():
    missing = [f'    "{name}": "{load_recipe(name).digest}",' for name in list_recipes() if name not in DIGESTS]
    assert missing == [], "add to DIGESTS:\n" + "\n".join(missing)
    assert list_recipes() == sorted(DIGESTS)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_field_that_is_added_changes_a_digest_only_where_it_differs_from_its_default(name):
    """Every kind of section gets a field, with a plain default and with a made one."""

    def widened(spec, **changes):
        added = [("strength", float, 0.5), ("names", list, dataclasses.field(default_factory=list))]
        wider = dataclasses.make_dataclass(type(spec).__name__, added, bases=(type(spec),), frozen=True)
        values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        for key, value in values.items():
            if dataclasses.is_dataclass(value):
                values[key] = widened(value)
        return wider(**values | changes)

    recipe = load_recipe(name)
    assert widened(recipe).to_dict() == recipe.to_dict()
    assert widened(recipe).digest == DIGESTS[name]
    if recipe.quantization is not None:
        stronger = dataclasses.replace(recipe, quantization=widened(recipe.quantization, strength=0.7))
        assert stronger.digest != DIGESTS[name]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("closed_loop*/methods.json")), ids=lambda path: path.parent.name)
def test_stored_results_say_which_recipe_each_row_was(path):
    """A rerun goes on only where the recipe has the digest it had."""
    for name, row in json.loads(path.read_text()).items():
        assert Recipe.from_dict(row["recipe"]).digest == row["recipe_digest"], name
        assert Recipe.from_dict(row["recipe"]).name == name
