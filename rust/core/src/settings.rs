//! How structs of settings are declared: so that one more breaks nobody.

/// A struct of settings that can grow, with a setter for each, by its name, that can be chained.
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $name:ident $(<$life:lifetime>)? { $($(#[$doc:meta])* pub $field:ident: $type:ty,)+ }
    ) => {
        $(#[$about])*
        #[non_exhaustive]
        pub struct $name $(<$life>)? { $($(#[$doc])* pub $field: $type,)+ }

        impl $(<$life>)? $name $(<$life>)? {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}
pub(crate) use settings;
