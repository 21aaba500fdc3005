-- The API dollars of this database: budget, spent, reserved, unresolved and free, which always add up. Parameters: none.
select budget_usd, spent_usd, reserved_usd, unresolved_usd, free_usd from balance;
