"""The embedded simulator: a tabletop with an arm, a cabinet and coloured objects, rendered without a screen."""
