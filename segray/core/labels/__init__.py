"""What segray label writes: schema, plan and parts, how they are made, and the one reader of them."""
