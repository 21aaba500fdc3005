-- Cost by model, most expensive first. Parameters: none.
select * from money_by_model order by spent_usd desc, model;
