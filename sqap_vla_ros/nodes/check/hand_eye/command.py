"""`check --camera`: pairs from the robot, a recording or a folder of pictures, and what they say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.node import Node
from rich.console import Console

from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, warning
from sqap_vla_ros.nodes.check.hand_eye.clicks import read_clicks, stamp_text
from sqap_vla_ros.nodes.check.hand_eye.judgement import Judgement, judge
from sqap_vla_ros.nodes.check.hand_eye.live import survey_robot
from sqap_vla_ros.nodes.check.hand_eye.on_hand import judge_on_hand
from sqap_vla_ros.nodes.check.hand_eye.picture import draw_pairs
from sqap_vla_ros.nodes.check.hand_eye.policy_view import PolicyView, assumed_view, loaded_view
from sqap_vla_ros.nodes.check.hand_eye.recorded import survey_bag
from sqap_vla_ros.nodes.check.hand_eye.sights import (
    Array,
    Chooser,
    Seen,
    Sight,
    Survey,
    Surveyor,
    Wanted,
    board_finder,
)
from sqap_vla_ros.nodes.check.hand_eye.store import CLICKS, PAGE, read_folder, write_folder
from sqap_vla_ros.nodes.check.options import LISTEN_CAMERA_S
from sqap_vla_ros.nodes.check.picture import save
from sqap_vla_ros.nodes.check.report import Report, Row
from sqap_vla_ros.nodes.check.session import standing_in
from sqap_vla_ros.nodes.launch.table import read_arguments
from sqap_vla_ros.robot.hand_eye.boards import Board, read_board
from sqap_vla_ros.robot.hand_eye.on_hand import sees_the_room
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs

TOLD = 3  # reasons why images could not be used


def check_hand_eye(args: argparse.Namespace) -> int:
    """Collect, judge and print; return the exit status: 0 for go, 1 for no-go or nothing judged yet.

    Raises ValueError and OSError for arguments and files that are wrong.
    """
    if args.board and args.clicks:
        raise ValueError("--board and --clicks both say where the tool is: give one of them")
    if args.bag and not args.bag.exists():
        raise ValueError(f"--bag {args.bag} does not exist")
    board = read_board(args.board) if args.board else None
    clicks = read_clicks(args.clicks) if args.clicks else None
    with standing_in(read_arguments(args.arguments)) as (node, values):
        surveyor = _survey(args, node, values, board, clicks)
    survey = surveyor.survey
    rows = [Row("images", finding) for finding in _images(surveyor)]
    seen: Seen | None = surveyor.found if board else None
    if clicks is not None:
        seen, unused = _matched(clicks, survey)
        rows += [Row("clicks", finding) for finding in unused]
    if seen is None:
        return _written(args, survey, rows)
    sights = [sight for sight in survey.sights if sight.stamp_ns in seen]
    if board is not None and not sights:
        rows.append(Row("board", _board_missing(surveyor, board, args.board)))
    if not sights:
        return _report(args, rows, "", None)
    pairs = pair_up(sights, seen, np.array(args.point))
    view = _view(args, values, sights[0], rows)
    judgement = (judge_on_hand if sees_the_room(pairs) else judge)(survey, pairs, view)
    rows += judgement.rows
    shown = ""
    try:
        ringed = replace(view, radius=None) if judgement.on_hand else view  # the ring lies on the tool
        save(draw_pairs(judgement.pairs, sights, ringed, judgement.fit, corrected=judgement.fitted), args.picture)
        shown = str(args.picture)
    except OSError as error:  # the findings are worth more
        rows.append(Row("picture", warning(str(error), "name another file with --picture")))
    return _report(args, rows, shown, judgement)


def pair_up(sights: list[Sight], seen: Seen, point: Array) -> ToolPairs:
    """Return the pairs of sights whose pixel is known. point: [3] in the tool's frame, metres."""
    return ToolPairs(
        sights[0].camera,
        np.array([sight.stamp_ns for sight in sights], dtype=np.int64),
        np.stack([sight.base_from_tool for sight in sights]),
        np.stack([sight.optical_from_base for sight in sights]),
        np.stack([seen[sight.stamp_ns] for sight in sights]),
        point,
    )


def _survey(
    args: argparse.Namespace, node: Node, values: Mapping[str, Any], board: Board | None, clicks: Seen | None
) -> Surveyor:
    survey = Survey("", values["base_frame"], values["tool_frame"])
    chooser = Chooser() if clicks is None else Wanted(list(clicks))
    surveyor = Surveyor(survey, chooser, board_finder(board.middle) if board else None)
    if args.bag:
        image = "image/compressed" if values["image_transport"] == "compressed" else "image"
        named = {"image": (image, "image"), "camera_info": ("camera_info", "camera_info")}
        given = read_arguments(args.arguments)
        topics = {key: node.resolve_topic_name(name) for key, (name, arg) in named.items() if given.get(arg)}
        survey_bag(args.bag, values, topics, surveyor)
    elif clicks is not None:
        return replace(surveyor, survey=read_folder(args.clicks.parent))
    else:
        survey_robot(node, values, surveyor, args.listen or LISTEN_CAMERA_S)
    return surveyor


def _images(surveyor: Surveyor) -> list[Finding]:
    """Return what became of the images."""
    survey = surveyor.survey
    lost = sum(survey.problems.values())
    told = [
        f"{count} images: {problem}"
        for problem, count in sorted(survey.problems.items(), key=lambda item: -item[1])[:TOLD]
    ]
    remedy = "`check` without --camera looks at images, camera_info and transforms one by one"
    if not survey.images or lost == survey.images:
        return [fail(text, remedy) for text in told] or [fail(f"no image came on {survey.where}", remedy)]
    text = f"{survey.where}: {survey.images} images, {len(survey.sights)} used"
    return [ok(text), *(warning(f"not used, {text}", remedy) for text in told)]


def _matched(clicks: Seen, survey: Survey) -> tuple[dict[int, Array], list[Finding]]:
    """Return the clicks by the stamps of the sights, and findings about those that belong to none or to no pixel."""
    seen: dict[int, Array] = {}
    strangers, outside = [], []
    for stamp_ns, pixel in clicks.items():
        sight = min(survey.sights, key=lambda one: abs(one.stamp_ns - stamp_ns), default=None)
        if sight is None or abs(sight.stamp_ns - stamp_ns) > Wanted.TOLERANCE_NS:
            strangers.append(stamp_ns)
        elif not (0 <= pixel[0] < sight.camera.width and 0 <= pixel[1] < sight.camera.height):
            outside.append((stamp_ns, pixel, sight))
        else:
            seen[sight.stamp_ns] = pixel
    findings = []
    if not clicks:
        findings.append(fail("the file has no clicks in it", f"open {PAGE} in a browser and click on the tool"))
    if strangers:
        findings.append(
            (warning if seen else fail)(
                f"{len(strangers)} of {len(clicks)} clicks have the stamp of no image, such as "
                f"{stamp_text(strangers[0])}",
                "stamps are those of the images' headers, in seconds with nine decimals",
            )
        )
    if outside:
        stamp_ns, (u, v), sight = outside[0]
        findings.append(
            (warning if seen else fail)(
                f"{len(outside)} of {len(clicks)} clicks are outside the image of {sight.camera.width}x"
                f"{sight.camera.height} pixels, such as ({u:g}, {v:g}) at {stamp_text(stamp_ns)}",
                "click in pictures of the original size; u is to the right and v down",
            )
        )
    return seen, findings


def _board_missing(surveyor: Surveyor, board: Board, name: str) -> Finding:
    for mirrored in (image[:, ::-1] for image in surveyor.unseen):
        if board_finder(board.middle)(np.ascontiguousarray(mirrored)) is not None:
            return fail(
                "the board is found only in the mirrored image: the camera's driver mirrors its images",
                "switch its flip off: no calibration fits to a mirrored image",
            )
    return fail(
        f"{name} was found in none of {surveyor.searched} images",
        "is it this dictionary and number, large and sharp enough, with a white margin? Or give --clicks",
    )


def _view(args: argparse.Namespace, values: Mapping[str, Any], sight: Sight, rows: list[Row]) -> PolicyView:
    if args.without_policy:
        return assumed_view()
    view = loaded_view(values, sight, wait_s=args.wait)
    if isinstance(view, PolicyView):
        return view
    rows.append(
        Row(
            "policy",
            fail(
                f"the policy does not work, so that its ring is unknown: {view}",
                "correct checkpoint and recipe, or use --without-policy",
            ),
        )
    )
    return assumed_view()


def _written(args: argparse.Namespace, survey: Survey, rows: list[Row]) -> int:
    """Write the pictures to click in."""
    if survey.sights:
        folder: Path = args.pictures
        write_folder(folder, survey)
        bag = f"--bag {args.bag} " if args.bag else ""
        rows.append(
            Row(
                "pictures",
                fail(
                    f"{len(survey.sights)} pictures are in {folder}; nothing is judged yet",
                    f"open {folder / PAGE} in a browser, on any computer, click on the tool in each picture, save the "
                    f"table as {folder / CLICKS}, and call check --camera {bag}--clicks {folder / CLICKS} with these "
                    "arguments",
                ),
            )
        )
    return _report(args, rows, "", None)


def _report(args: argparse.Namespace, rows: list[Row], shown: str, judgement: Judgement | None) -> int:
    ring = "" if judgement is not None and judgement.on_hand else ", and the blue ring on the gripper"
    report = Report(tuple(rows), shown, f"does each cross lie on its circle{ring}?")
    if args.json:
        content = report.as_json() | {"hand_eye": judgement.numbers if judgement else {}}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        report.print(Console())
    return 0 if report.go else 1
