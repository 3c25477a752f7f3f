"""The embedded simulator: a tabletop with an arm, a cabinet and coloured objects, rendered without a screen."""

from sqap_vla_ros.simulation.gl import select_backend

select_backend()  # MuJoCo reads the choice at its first import, so it must be made before any module below imports it
