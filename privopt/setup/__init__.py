"""What a user's configuration names, checked and made: tables, data, models: floor 6, before a federation."""
