"""A go/no-go before the first motion: everything around the policy node is looked at, and nothing is commanded."""
