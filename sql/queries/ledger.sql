-- The API dollars of this database: budget, spent, reserved, unresolved and free. The last four add up to the budget. Parameters:
-- none.
select budget_usd, spent_usd, reserved_usd, unresolved_usd, free_usd from balance;
